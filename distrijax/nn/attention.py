"""Attention over the tokens of a picture, and the transformer of the U-Net that is built from it."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distrijax.nn.conv import PointwiseConv
from distrijax.nn.norm import GroupNorm, LayerNorm
from distrijax.parallel.exchange import Exchange

KeysValues = tuple[Array, Array]  # [B, T, C] twice


def attend(q: Array, k: Array, v: Array, heads: int, mask: Array | None = None) -> Array:
    """Attention of `q` [B, t, C] over `k`, `v` [B, T, C]: [B, t, C]. `mask` [T] is True for tokens that exist."""

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], heads, -1)  # [B, T, heads, C / heads]

    where = None if mask is None else mask[None, None, None, :]
    with jax.numpy_dtype_promotion("standard"):  # JAX's own code mixes bf16 and fp32 in the softmax
        y = jax.nn.dot_product_attention(
            split(q), split(k), split(v), mask=where, implementation=_implementation(q, heads)
        )
    return y.reshape(q.shape)


def _implementation(q: Array, heads: int) -> Literal["cudnn", "xla"]:
    # XLA's own attention writes the scores: 0.67 GB a block for a CFG pair at 1024x1024. cuDNN's does not, but takes
    # only half precision and heads of up to 128 channels, a multiple of 8.
    size = q.shape[-1] // heads
    fused = jax.default_backend() == "gpu" and q.dtype.itemsize == 2 and size <= 128 and size % 8 == 0
    return "cudnn" if fused else "xla"


class SelfAttention(nnx.Module):
    """Every token of this device's rows attends to every token of the picture."""

    def __init__(self, channels: int, heads: int, *, bias: bool = False, dtype: DTypeLike, rngs: nnx.Rngs):
        if channels % heads:
            raise ValueError(f"attention: {channels} channels cannot be split into {heads} equal heads")
        kw: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.to_q = nnx.Linear(channels, channels, use_bias=bias, **kw)
        self.to_k = nnx.Linear(channels, channels, use_bias=bias, **kw)
        self.to_v = nnx.Linear(channels, channels, use_bias=bias, **kw)
        self.to_out = nnx.Linear(channels, channels, **kw)
        self.heads, self.path = heads, ""

    def __call__(self, x: Array, px: Exchange) -> Array:  # [B, t, C]
        with jax.named_scope(self.path):
            k, v, mask = px.tokens(self.path, self.to_k(x), self.to_v(x))
            return self.to_out(attend(self.to_q(x), k, v, self.heads, mask))


class CrossAttention(nnx.Module):
    """Every token attends to the text, whose keys and values are computed once a picture."""

    def __init__(self, channels: int, context_dim: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        kw: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.to_q = nnx.Linear(channels, channels, use_bias=False, **kw)
        self.to_k = nnx.Linear(context_dim, channels, use_bias=False, **kw)
        self.to_v = nnx.Linear(context_dim, channels, use_bias=False, **kw)
        self.to_out = nnx.Linear(channels, channels, **kw)
        self.heads, self.path = heads, ""

    def keys_values(self, context: Array) -> KeysValues:  # [B, T, D] -> [B, T, C] twice
        return self.to_k(context), self.to_v(context)

    def __call__(self, x: Array, kv: KeysValues) -> Array:  # [B, t, C]
        with jax.named_scope(self.path):
            return self.to_out(attend(self.to_q(x), *kv, self.heads))


class FeedForward(nnx.Module):
    """Gated linear unit with exact GELU (arXiv 2002.05202): the tanh form is 2e-4 off at its worst point."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        kw: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.proj_in, self.proj_out = nnx.Linear(channels, 8 * channels, **kw), nnx.Linear(4 * channels, channels, **kw)

    def __call__(self, x: Array) -> Array:  # [B, t, C]
        hidden, gate = jnp.split(self.proj_in(x), 2, -1)  # [B, t, 4C]
        return self.proj_out(hidden * nnx.gelu(gate, approximate=False))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention and feed-forward, each with layer norm before and a residual around it."""

    def __init__(self, channels: int, context_dim: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1, self.norm2, self.norm3 = (LayerNorm(channels, dtype=dtype) for _ in range(3))
        self.attn1 = SelfAttention(channels, heads, dtype=dtype, rngs=rngs)
        self.attn2 = CrossAttention(channels, context_dim, heads, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, cross: Mapping[str, KeysValues], px: Exchange) -> Array:  # [B, t, C]
        x = x + self.attn1(self.norm1(x), px)
        x = x + self.attn2(self.norm2(x), cross[self.attn2.path])
        return x + self.ff(self.norm3(x))


class Transformer2D(nnx.Module):
    """Transformer blocks over the pixels of a feature map, with a residual around them all."""

    def __init__(
        self,
        channels: int,
        context_dim: int,
        heads: int,
        depth: int,
        *,
        groups: int,
        linear_projection: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def projection() -> nnx.Linear | PointwiseConv:
            if linear_projection:
                return nnx.Linear(channels, channels, dtype=dtype, param_dtype=dtype, rngs=rngs)
            return PointwiseConv(channels, channels, dtype=dtype, rngs=rngs)

        self.norm = GroupNorm(channels, groups, eps=1e-6, dtype=dtype)  # 1e-6 here, 1e-5 in the residual blocks
        self.proj_in, self.proj_out = projection(), projection()
        self.transformer_blocks = nnx.List(
            [TransformerBlock(channels, context_dim, heads, dtype=dtype, rngs=rngs) for _ in range(depth)]
        )

    def __call__(self, x: Array, cross: Mapping[str, KeysValues], px: Exchange) -> Array:  # [B, H, W, C]
        b, h, w, c = x.shape
        y = self.proj_in(self.norm(x, px)).reshape(b, h * w, c)
        for block in self.transformer_blocks:
            y = block(y, cross, px)
        return x + self.proj_out(y.reshape(b, h, w, c))

"""Attention over the tokens of a picture, and the transformer of the U-Net that is built from it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from distrijax.nn.conv import PointwiseConv
from distrijax.nn.norm import GroupNorm, LayerNorm
from distrijax.nn.platform import traced_for
from distrijax.parallel.exchange import Exchange

KeysValues = tuple[Array, Array]  # [T, B, C] twice

# fp32 scores of one block of queries. A decoder at 3840x3840 has 230,400 tokens: all its scores would take 212 GB.
_SCORES = 256 * 2**20


def attend(q: Array, k: Array, v: Array, heads: int) -> Array:
    """Attention of `q` [..., B, C] over `k`, `v` [T, B, C]: of the shape of `q`.

    Tokens come before pictures, so that keys and values gathered from several devices lie in memory as they arrive,
    and a device's own are written over their part in place: with pictures first, that part alone is a copy of 0.8 GB a
    step of SDXL at 1024x1024. Pictures and heads are then one axis.
    """

    def split(x: Array) -> Array:
        return x.reshape(1, -1, x.shape[-2] * heads, x.shape[-1] // heads)  # [1, T, B * heads, C / heads]

    queries, keys, values = split(q), split(k), split(v)
    fused = _fused(q, heads)
    block = queries.shape[1] if fused else _SCORES // (4 * keys.shape[1] * keys.shape[2])

    def attention(queries: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # JAX's own code mixes bf16 and fp32 in the softmax
            return jax.nn.dot_product_attention(queries, keys, values, implementation="cudnn" if fused else "xla")

    return _in_blocks(attention, queries, max(block, 1)).reshape(q.shape)


def _in_blocks(attention: Callable[[Array], Array], queries: Array, block: int) -> Array:
    """`attention` of `queries` [1, t, heads, D], at most `block` of them at a time."""
    total = queries.shape[1]
    if total <= block:
        return attention(queries)
    count = -(-total // block)
    block = -(-total // count)
    padded = jnp.pad(queries, ((0, 0), (0, count * block - total), (0, 0), (0, 0)))
    blocks = padded.reshape(count, 1, block, *queries.shape[2:])
    return lax.map(attention, blocks).reshape(1, count * block, *queries.shape[2:])[:, :total]


def _fused(q: Array, heads: int) -> bool:
    # XLA's own attention writes the scores: 0.67 GB a block for a CFG pair at 1024x1024. cuDNN's does not, but takes
    # only half precision and heads of up to 128 channels, a multiple of 8.
    size = q.shape[-1] // heads
    return traced_for() == "gpu" and q.dtype.itemsize == 2 and size <= 128 and size % 8 == 0


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

    def __call__(self, x: Array, px: Exchange) -> Array:  # [H, W, B, C]
        with jax.named_scope(self.path):
            x = px.before_tokens(self.path, x)
            k, v = px.tokens(self.path, self.to_k(x), self.to_v(x))
            return self.to_out(attend(self.to_q(x), k, v, self.heads))


class CrossAttention(nnx.Module):
    """Every token attends to the text, whose keys and values are computed once a picture."""

    def __init__(self, channels: int, context_dim: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        kw: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.to_q = nnx.Linear(channels, channels, use_bias=False, **kw)
        self.to_k = nnx.Linear(context_dim, channels, use_bias=False, **kw)
        self.to_v = nnx.Linear(context_dim, channels, use_bias=False, **kw)
        self.to_out = nnx.Linear(channels, channels, **kw)
        self.heads, self.path = heads, ""

    def keys_values(self, context: Array) -> KeysValues:  # [B, T, D] -> [T, B, C] twice
        return self.to_k(context).swapaxes(0, 1), self.to_v(context).swapaxes(0, 1)

    def __call__(self, x: Array, kv: KeysValues) -> Array:  # [H, W, B, C]
        with jax.named_scope(self.path):
            return self.to_out(attend(self.to_q(x), *kv, self.heads))


class FeedForward(nnx.Module):
    """Gated linear unit with exact GELU (arXiv 2002.05202): the tanh form is 2e-4 off at its worst point."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        kw: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.proj_in, self.proj_out = nnx.Linear(channels, 8 * channels, **kw), nnx.Linear(4 * channels, channels, **kw)
        self.path = ""

    def __call__(self, x: Array) -> Array:  # [..., C]
        with jax.named_scope(self.path):
            hidden, gate = jnp.split(self.proj_in(x), 2, -1)  # [..., 4C]
            return self.proj_out(hidden * nnx.gelu(gate, approximate=False))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention and feed-forward, each with layer norm before and a residual around it."""

    def __init__(self, channels: int, context_dim: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1, self.norm2, self.norm3 = (LayerNorm(channels, dtype=dtype) for _ in range(3))
        self.attn1 = SelfAttention(channels, heads, dtype=dtype, rngs=rngs)
        self.attn2 = CrossAttention(channels, context_dim, heads, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, cross: Mapping[str, KeysValues], px: Exchange) -> Array:  # [H, W, B, C]
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
        # [H, W, B, C], see `attend`. Transposed after the product it would be copied; the norm writes it so in passing.
        y = self.proj_in(self.norm(x, px).transpose(1, 2, 0, 3))
        for block in self.transformer_blocks:
            y = block(y, cross, px)
        return x + self.proj_out(y.transpose(2, 0, 1, 3))

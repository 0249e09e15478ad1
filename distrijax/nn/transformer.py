"""The transformer of the U-Net: attention and feed-forward over the pixels of a feature map."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distrijax.nn.attention import attend
from distrijax.nn.conv import PointwiseConv
from distrijax.nn.exchange import Exchange
from distrijax.nn.module import Init, Layer, linear
from distrijax.nn.norm import GroupNorm, LayerNorm

KeysValues = tuple[Array, Array]  # [T, B, C] each


class SelfAttention(Layer):
    """Self-attention of this device's tokens over every token of the picture."""

    def __init__(self, channels: int, heads: int, *, bias: bool = False, dtype: DTypeLike, rngs: nnx.Rngs):
        if channels % heads:
            raise ValueError(f"attention: {channels} channels cannot be split into {heads} equal heads")
        init: Init = {"dtype": dtype, "rngs": rngs}
        self.to_q = linear(channels, channels, bias=bias, **init)
        self.to_k = linear(channels, channels, bias=bias, **init)
        self.to_v = linear(channels, channels, bias=bias, **init)
        self.to_out = linear(channels, channels, **init)
        self.heads = heads

    def project(self, x: Array) -> tuple[Array, Array, Array]:  # queries, keys, values
        return self.to_q(x), self.to_k(x), self.to_v(x)

    def __call__(self, x: Array, exchange: Exchange) -> Array:  # [H, W, B, C]
        with jax.named_scope(self.path):
            return self.to_out(exchange.attention(self.path, x, self.project, self.heads))


class CrossAttention(Layer):
    """Cross-attention over the text, whose keys and values are computed once per picture."""

    def __init__(self, channels: int, context_dim: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init: Init = {"dtype": dtype, "rngs": rngs}
        self.to_q = linear(channels, channels, bias=False, **init)
        self.to_k = linear(context_dim, channels, bias=False, **init)
        self.to_v = linear(context_dim, channels, bias=False, **init)
        self.to_out = linear(channels, channels, **init)
        self.heads = heads

    def keys_values(self, context: Array) -> KeysValues:  # [B, T, D] -> [T, B, C] each
        return self.to_k(context).swapaxes(0, 1), self.to_v(context).swapaxes(0, 1)

    def __call__(self, x: Array, kv: KeysValues) -> Array:  # [H, W, B, C]
        with jax.named_scope(self.path):
            return self.to_out(attend(self.to_q(x), *kv, self.heads))


class FeedForward(Layer):
    """A gated linear unit with exact GELU (arXiv 2002.05202): the tanh approximation is off by up to 2e-4."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init: Init = {"dtype": dtype, "rngs": rngs}
        self.proj_in, self.proj_out = linear(channels, 8 * channels, **init), linear(4 * channels, channels, **init)

    def __call__(self, x: Array) -> Array:  # [..., C]
        with jax.named_scope(self.path):
            hidden, gate = jnp.split(self.proj_in(x), 2, -1)  # [..., 4C]
            return self.proj_out(hidden * nnx.gelu(gate, approximate=False))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention and feed-forward, each with a layer norm before it and a residual connection."""

    def __init__(self, channels: int, context_dim: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1, self.norm2, self.norm3 = (LayerNorm(channels, dtype=dtype) for _ in range(3))
        self.attn1 = SelfAttention(channels, heads, dtype=dtype, rngs=rngs)
        self.attn2 = CrossAttention(channels, context_dim, heads, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, cross: Mapping[str, KeysValues], exchange: Exchange) -> Array:  # [H, W, B, C]
        x = x + self.attn1(self.norm1(x), exchange)
        x = x + self.attn2(self.norm2(x), cross[self.attn2.path])
        return x + self.ff(self.norm3(x))


class Transformer2D(nnx.Module):
    """Transformer blocks over the pixels of a feature map, with one residual connection around them."""

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
                return linear(channels, channels, dtype=dtype, rngs=rngs)
            return PointwiseConv(channels, channels, dtype=dtype, rngs=rngs)

        self.norm = GroupNorm(channels, groups, eps=1e-6, dtype=dtype)  # 1e-6 here, 1e-5 in the residual blocks
        self.proj_in, self.proj_out = projection(), projection()
        self.transformer_blocks = nnx.List(
            [TransformerBlock(channels, context_dim, heads, dtype=dtype, rngs=rngs) for _ in range(depth)]
        )

    def __call__(self, x: Array, cross: Mapping[str, KeysValues], exchange: Exchange) -> Array:  # [B, H, W, C]
        # [H, W, B, C], as `attend` expects. Transpose here so that XLA fuses it into the norm; after the matmul it
        # would be a separate copy.
        y = self.proj_in(self.norm(x, exchange).transpose(1, 2, 0, 3))
        for block in self.transformer_blocks:
            y = block(y, cross, exchange)
        return x + self.proj_out(y.transpose(2, 0, 1, 3))

"""Normalisation layers, with statistics in fp32 for any dtype of the weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from distrijax.nn.exchange import Exchange, Fit
from distrijax.nn.module import Layer


class GroupNorm(Layer):
    """Group norm over the whole picture, in fp32 with biased variance, like `torch.nn.GroupNorm`."""

    def __init__(self, channels: int, groups: int, *, eps: float, dtype: DTypeLike):
        if channels % groups:
            raise ValueError(f"group norm: {channels} channels cannot be split into {groups} equal groups")
        self.scale, self.bias = nnx.Param(jnp.ones(channels, dtype)), nnx.Param(jnp.zeros(channels, dtype))
        self.groups, self.eps = groups, eps

    def __call__(self, x: Array, exchange: Exchange) -> Array:  # [B, H, W, C]
        return self.fit(x, exchange)(x)

    def fit(self, x: Array, exchange: Exchange) -> Callable[[Array], Array]:
        """Return the norm of any rows of the picture, given this device's rows `x` [B, h, W, C]."""
        with jax.named_scope(self.path):
            mean, var = exchange.moments(self.path, x, self.groups)  # [B, G]
            mean, inv = (self._by_channel(m, x) for m in (mean, lax.rsqrt(var + self.eps)))
            scale, bias = (p[...].astype(jnp.float32)[None, None, None, :] for p in (self.scale, self.bias))

        def norm(rows: Array) -> Array:
            with jax.named_scope(self.path):
                # Multiply twice: XLA computes `inv * scale` in a kernel of its own, 46 per step of SDXL, 2 µs each.
                return ((rows.astype(jnp.float32) - mean) * inv * scale + bias).astype(rows.dtype)

        return norm

    def then_silu(self, exchange: Exchange) -> Fit:
        """Return how a convolution prepares its rows where this norm and a SiLU stand before it."""

        def fit(x: Array) -> Callable[[Array], Array]:
            norm = self.fit(x, exchange)
            return lambda rows: nnx.silu(norm(rows))

        return fit

    def _by_channel(self, m: Array, x: Array) -> Array:  # [B, G] -> [B, 1, 1, C]
        return jnp.repeat(m, x.shape[-1] // self.groups, 1)[:, None, None, :]


class LayerNorm(Layer):
    """Layer norm over the last axis, in fp32, like `torch.nn.LayerNorm`."""

    def __init__(self, channels: int, *, eps: float = 1e-5, dtype: DTypeLike):
        self.scale, self.bias = nnx.Param(jnp.ones(channels, dtype)), nnx.Param(jnp.zeros(channels, dtype))
        self.eps = eps

    def __call__(self, x: Array) -> Array:  # [..., C]
        with jax.named_scope(self.path):
            y = x.astype(jnp.float32)
            y = y - y.mean(-1, keepdims=True)
            y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
            shape = (1,) * (x.ndim - 1) + (-1,)
            scale, bias = (p[...].astype(jnp.float32).reshape(shape) for p in (self.scale, self.bias))
            return (y * scale + bias).astype(x.dtype)

"""Embeddings of numbers: the timestep, and the sizes of SDXL's micro-conditioning."""

import math

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distrijax.nn.module import Init, linear


def sinusoidal_embedding(x: Array, dim: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0) -> Array:
    """Return sines and cosines of `x` [N] at `dim / 2` frequencies from 1 down to about 1/10000: fp32 [N, dim].

    The position encoding of transformers (arXiv 1706.03762, section 3.5), cosines first if `flip_sin_to_cos`.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = x.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = [jnp.cos(angles), jnp.sin(angles)] if flip_sin_to_cos else [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts, -1)


def guidance_embedding(scale: Array, dim: int) -> Array:
    """Return the embedding of a guidance scale [B], for U-Nets that take it as an input (LCM): fp32 [B, dim].

    The same as `diffusers.StableDiffusionXLPipeline.get_guidance_scale_embedding`: `1000 (scale - 1)`, sines first.
    """
    return sinusoidal_embedding((scale - 1) * 1000.0, dim, flip_sin_to_cos=False, freq_shift=1)


class TimestepEmbedding(nnx.Module):
    """Two linear layers with a SiLU between them; `cond_proj` projects the guidance scale, which LCM adds to `x`."""

    def __init__(self, in_dim: int, dim: int, *, cond_dim: int | None = None, dtype: DTypeLike, rngs: nnx.Rngs):
        init: Init = {"dtype": dtype, "rngs": rngs}
        self.linear_1, self.linear_2 = linear(in_dim, dim, **init), linear(dim, dim, **init)
        self.cond_proj = nnx.data(linear(cond_dim, in_dim, bias=False, **init) if cond_dim else None)

    def __call__(self, x: Array) -> Array:  # [B, in_dim] -> [B, dim]
        return self.linear_2(nnx.silu(self.linear_1(x)))

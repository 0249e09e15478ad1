"""GEGLU as one GPU kernel: a matrix product that gates one half of its columns with the other before it writes them.

XLA makes two kernels of it: the product, and an elementwise one that reads all of the product and writes half as much.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from gpu.gelus import gelu_exp


def geglu(x: Array, weight: Array, bias: Array, *, interpret: bool = False) -> Array:  # [T, C], [C, 2D], [2D] -> [T, D]
    """Return `h * gelu(g)`, where `h` and `g` are the halves of `x @ weight + bias`.

    The GELU is `gelu_exp`, since Pallas has no `erf` for Triton.
    """
    tokens, channels = x.shape
    width = weight.shape[1] // 2
    rows, columns, depth = _tile(tokens, 128), _tile(width, 64), _tile(channels, 64)
    blocks = width // columns  # of columns in each half
    weights = [pl.BlockSpec((channels, columns), lambda i, j, first=first: (0, j + first)) for first in (0, blocks)]
    biases = [pl.BlockSpec((columns,), lambda i, j, first=first: (j + first,)) for first in (0, blocks)]
    return pl.pallas_call(
        partial(_kernel, depth=depth),
        out_shape=jax.ShapeDtypeStruct((tokens, width), x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type),
        grid=(tokens // rows, blocks),
        in_specs=[pl.BlockSpec((rows, channels), lambda i, j: (i, 0)), *weights, *biases],
        out_specs=pl.BlockSpec((rows, columns), lambda i, j: (i, j)),
        compiler_params=triton.CompilerParams(num_warps=8 if rows == 128 else 4, num_stages=3),
        interpret=interpret,
        name="geglu",
    )(x, weight, weight, bias, bias)


def _kernel(x, hidden_weight, gate_weight, hidden_bias, gate_bias, out, *, depth: int) -> None:  # references to blocks
    def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        inner = pl.ds(i * depth, depth)
        block = x[:, inner]
        hidden, gate = (
            total + jnp.dot(block, weight[inner, :], preferred_element_type=jnp.float32)
            for total, weight in zip(sums, (hidden_weight, gate_weight), strict=True)
        )
        return hidden, gate

    zeros = jnp.zeros(out.shape, jnp.float32)
    hidden, gate = jax.lax.fori_loop(0, x.shape[1] // depth, add, (zeros, zeros))
    hidden += hidden_bias[:].astype(jnp.float32)[None]
    gate += gate_bias[:].astype(jnp.float32)[None]
    out[:, :] = (hidden * gelu_exp(gate)).astype(out.dtype)


def _tile(size: int, largest: int) -> int:
    """Return the largest power of two, up to `largest`, that divides `size`."""
    return min(largest, size & -size)

"""Attention by cuDNN's fused kernel where it applies, otherwise in blocks of queries."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from distrijax.nn.platform import traced_for

# Bytes of fp32 scores per block of queries. A decoder at 3840x3840 has 230,400 tokens, whose scores take 212 GB.
_SCORES = 256 * 2**20


def attend(q: Array, k: Array, v: Array, heads: int) -> Array:
    """Return the attention of `q` [..., B, C] over `k` and `v` [T, B, C], shaped like `q`.

    Tokens are the leading axis, so that keys and values gathered from several devices need no rearranging and a device
    can write its own part in place. With the batch first, that part alone would cost 0.8 GB of copies per step of SDXL
    at 1024x1024. Batch and heads form one axis.
    """

    def split(x: Array) -> Array:
        return x.reshape(1, -1, x.shape[-2] * heads, x.shape[-1] // heads)  # [1, T, B * heads, C / heads]

    fused = _fused(q, heads)
    if fused:
        k, v = _mapped_like(q, k), _mapped_like(q, v)
    queries, keys, values = split(q), split(k), split(v)
    block = queries.shape[1] if fused else _SCORES // (4 * keys.shape[1] * keys.shape[2])

    def attention(queries: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # JAX's own softmax mixes bf16 and fp32
            return jax.nn.dot_product_attention(queries, keys, values, implementation="cudnn" if fused else "xla")

    return _in_blocks(attention, queries, max(block, 1)).reshape(q.shape)


def _mapped_like(q: Array, x: Array) -> Array:
    """Return `x`, mapped over every axis that `vmap` maps `q` over; a select that XLA removes.

    Virtual devices share gathered keys, but in jax 0.10 cuDNN's attention takes mapped queries only with mapped keys.
    """
    return lax.select_n(q.reshape(-1)[0] > 0, x, x)


def _in_blocks(attention: Callable[[Array], Array], queries: Array, block: int) -> Array:
    """Apply `attention` to `queries` [1, t, heads, D], at most `block` of them at a time."""
    total = queries.shape[1]
    if total <= block:
        return attention(queries)
    count = -(-total // block)
    block = -(-total // count)
    padded = jnp.pad(queries, ((0, 0), (0, count * block - total), (0, 0), (0, 0)))
    blocks = padded.reshape(count, 1, block, *queries.shape[2:])
    return lax.map(attention, blocks).reshape(1, count * block, *queries.shape[2:])[:, :total]


def _fused(q: Array, heads: int) -> bool:
    # XLA's attention writes its scores to memory: 0.67 GB per block for a guidance pair at 1024x1024. cuDNN's does not,
    # but supports only half precision and heads of at most 128 channels, in multiples of 8.
    size = q.shape[-1] // heads
    return traced_for() == "gpu" and q.dtype.itemsize == 2 and size <= 128 and size % 8 == 0

"""The interface through which layers learn about rows that their device does not hold.

Every layer works on the rows of its own device. Three kinds need more: a convolution needs the neighbouring rows, a
group norm the statistics of the whole picture, and self-attention the whole picture's keys and values. They ask the
exchange object that is passed to their call, and know nothing of devices or denoising steps.
"""

from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
from jax import Array, lax

from distrijax.nn.attention import attend

Projection = Callable[[Array], tuple[Array, Array, Array]]
"""A function from the input of a self-attention [h, W, B, C] to queries, keys and values of the same shape."""

Fit = Callable[[Array], Callable[[Array], Array]]
"""A function from this device's rows [B, h, W, C] to what is done with each row, theirs or a neighbour's: a group norm
that has seen the rows, for example."""


def untouched(x: Array) -> Callable[[Array], Array]:
    """Fit nothing, and leave rows as they are."""
    return lambda rows: rows


class Exchange(Protocol):
    """The questions that layers may ask. Each layer, identified by `layer`, asks once per call of the model."""

    def halo(self, layer: str, x: Array, above: int, below: int, fit: Fit = untouched) -> Array:
        """Return `fit(x)(x)` extended by the rows around it.

        What happens to the rows before the convolution is passed as a function so that the policy decides whether
        rows are sent before or after: before, they travel while the group norm waits for the picture's moments.

        Args:
            x: this device's rows, [B, h, W, C].
            above, below: number of rows to add on each side; rows outside the picture are zero.

        Returns:
            [B, above + h + below, W, C].
        """
        ...

    def moments(self, layer: str, x: Array, groups: int) -> tuple[Array, Array]:
        """Return the whole picture's mean and biased variance of `x` [B, h, W, C] per channel group: fp32 [B, G]."""
        ...

    def attention(self, layer: str, x: Array, project: Projection, heads: int) -> Array:
        """Return the attention of this device's tokens over those of the whole picture.

        The projection is passed as a function so that the policy decides when it runs: if it ran before the previous
        step's keys and values were sent, the new ones would need a buffer and a copy of their own (see
        `StaleAttention`).

        Args:
            x: the input of the self-attention, [h, W, B, C].

        Returns:
            The attention of the queries, [h, W, B, C], before the output projection.
        """
        ...


class Whole:
    """The exchange of a device that holds the whole picture."""

    def halo(self, layer: str, x: Array, above: int, below: int, fit: Fit = untouched) -> Array:
        return jnp.pad(fit(x)(x), ((0, 0), (above, below), (0, 0), (0, 0)))

    def moments(self, layer: str, x: Array, groups: int) -> tuple[Array, Array]:
        return group_moments(x, groups)

    def attention(self, layer: str, x: Array, project: Projection, heads: int) -> Array:
        q, k, v = project(x)
        return attend(q, tokens(k), tokens(v), heads)


WHOLE = Whole()


def group_moments(x: Array, groups: int, rows: Array | None = None) -> tuple[Array, Array]:
    """Return the mean and biased variance of `x` [B, H, W, C] per channel group: fp32 [B, G].

    For fp32 inputs the second moment is centred: E[x²] - E[x]² loses every digit at a mean of 300 and a deviation of
    0.1. Half-precision inputs do not hold those digits, so both moments take one pass. Centring takes two passes and,
    on small slabs, an fp32 copy of `x`: 18 µs instead of 9 for a norm of [2, 16, 128, 320] on an H100 (estimated).

    Args:
        rows: number of leading rows to include; by default all. If it is 0, both moments are 0.
    """
    half = x.dtype.itemsize == 2
    x = x.astype(jnp.float32)
    batch, height, width, channels = x.shape
    count: Array | int = height * width
    if rows is not None:
        x = jnp.where((jnp.arange(height) < rows)[None, :, None, None], x, 0)
        count = jnp.maximum(rows, 1).astype(jnp.float32) * width

    def by_group(y: Array) -> Array:  # [B, C] -> [B, G, C / G]
        return y.reshape(batch, groups, -1)

    if half:
        # Two sums at once: a small kernel takes 2 µs on a GPU, whatever it does, and SDXL has 46 norms.
        sums, squares = map(by_group, _sums((x, jnp.square(x)), (1, 2)))
        mean, square = (total / (count * (channels // groups)) for total in _sums((sums, squares), (2,)))
        return mean, jnp.maximum(square - jnp.square(mean), 0)
    means = x.sum((1, 2)) / count
    centred = x - means[:, None, None, :]
    if rows is not None:
        centred = jnp.where((jnp.arange(height) < rows)[None, :, None, None], centred, 0)
    variances = jnp.square(centred).sum((1, 2)) / count
    mean = by_group(means).mean(-1)  # [B, G]
    return mean, (by_group(variances) + jnp.square(by_group(means) - mean[..., None])).mean(-1)


def _sums(arrays: tuple[Array, Array], axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the sums of two arrays along axes, in one reduction."""
    zero = jnp.float32(0)
    first, second = lax.reduce(arrays, (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), axes)
    return first, second


def tokens(x: Array) -> Array:
    """Return the tokens of a feature map: [h, W, B, C] -> [h * W, B, C]."""
    return x.reshape(-1, *x.shape[2:])

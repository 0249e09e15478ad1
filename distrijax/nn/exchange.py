"""What a layer may ask about rows that its device does not hold.

Every layer works on the rows of its own device. Three kinds of layer need more: a convolution needs the rows next to
its own, a group norm the statistics of the whole picture, and self-attention the keys and values of the whole picture.
They ask the exchange object that is passed to their call, and know nothing of devices or denoising steps.
"""

from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from distrijax.nn.attention import attend

Projection = Callable[[Array], tuple[Array, Array, Array]]
"""Makes queries, keys and values, each [h, W, B, C], from the input of a self-attention [h, W, B, C]."""


class Exchange(Protocol):
    """The questions that a layer may ask. `layer` names the asking layer, which asks once per call of the model."""

    def halo(self, layer: str, x: Array, above: int, below: int) -> Array:
        """Extend `x` by the rows around it.

        Args:
            x: this device's rows, [B, h, W, C].
            above, below: rows to add before and after. Outside the picture they are zero.

        Returns:
            [B, above + h + below, W, C].
        """
        ...

    def moments(self, layer: str, x: Array, groups: int) -> tuple[Array, Array]:
        """Return mean and biased variance of the whole picture's `x` [B, h, W, C] by channel group: fp32 [B, G]."""
        ...

    def attention(self, layer: str, x: Array, project: Projection, heads: int) -> Array:
        """Let the tokens of this device's rows attend to those of the whole picture.

        The projection is passed as a function so that a policy decides when keys and values are computed: computed
        before last step's have been sent, they would need a buffer and a copy of their own (see `StaleAttention`).

        Args:
            x: the input of the self-attention, [h, W, B, C].

        Returns:
            The attention of the queries, [h, W, B, C], before the output projection.
        """
        ...


class Whole:
    """The exchange of a device that holds every row: nothing is missing."""

    def halo(self, layer: str, x: Array, above: int, below: int) -> Array:
        return jnp.pad(x, ((0, 0), (above, below), (0, 0), (0, 0)))

    def moments(self, layer: str, x: Array, groups: int) -> tuple[Array, Array]:
        return group_moments(x, groups)

    def attention(self, layer: str, x: Array, project: Projection, heads: int) -> Array:
        q, k, v = project(x)
        return attend(q, tokens(k), tokens(v), heads)


WHOLE = Whole()


def group_moments(x: Array, groups: int, rows: Array | None = None) -> tuple[Array, Array]:
    """Return mean and biased variance of `x` [B, H, W, C] over rows, columns and the channels of a group: fp32 [B, G].

    In fp32 the second moment is centred: E[x²] - E[x]² loses every digit at a mean of 300 and a deviation of 0.1.
    Half precision does not hold those digits in the first place, so both moments are computed in one pass. Centring
    takes two passes and, on small slabs, an fp32 copy of `x`: 18 µs instead of 9 for a norm of [2, 16, 128, 320] on an
    H100 (estimated).

    Args:
        rows: number of leading rows that count, if not all of them. With none, both moments are 0.
    """
    half = x.dtype.itemsize == 2
    x = x.astype(jnp.float32)

    def average(y: Array) -> Array:  # [B, H, W, C] -> [B, C]
        if rows is None:
            return y.mean((1, 2))
        y = jnp.where((jnp.arange(y.shape[1]) < rows)[None, :, None, None], y, 0)
        return y.mean(2).sum(1) / jnp.maximum(rows, 1).astype(jnp.float32)

    def by_group(channels: Array) -> Array:  # [B, C] -> [B, G, C / G]
        return channels.reshape(len(channels), groups, -1)

    means = average(x)
    if half:
        variances = jnp.maximum(average(jnp.square(x)) - jnp.square(means), 0)
    else:
        variances = average(jnp.square(x - means[:, None, None, :]))
    mean = by_group(means).mean(-1)  # [B, G]
    return mean, (by_group(variances) + jnp.square(by_group(means) - mean[..., None])).mean(-1)


def tokens(x: Array) -> Array:
    """Return the tokens of a feature map: [h, W, B, C] -> [h * W, B, C]."""
    return x.reshape(-1, *x.shape[2:])

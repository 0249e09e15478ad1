"""What a layer may ask about rows that it does not hold.

Every layer of the models works on the rows that its device holds. Three kinds of layer need more: a convolution (the
rows next to its own), a group norm (the statistics of the whole picture) and a self-attention (the keys and values of
the whole picture). They ask the exchange object `px` that is passed to their call, and know nothing of devices or
steps.
"""

from typing import Protocol

import jax.numpy as jnp
from jax import Array


class Exchange(Protocol):
    """The three questions a layer may ask. `path` names the asking layer, once a call of the model."""

    def halo(self, path: str, x: Array, above: int, below: int) -> Array:
        """`x` [B, h, W, C] with the `above` rows before and the `below` rows after it: [B, above + h + below, W, C].

        Outside the picture the rows are zero.
        """
        ...

    def moments(self, path: str, x: Array, groups: int) -> tuple[Array, Array]:
        """Mean and biased variance of the whole picture's `x` [B, h, W, C] by channel group: fp32 [B, G] each."""
        ...

    def tokens(self, path: str, k: Array, v: Array) -> tuple[Array, Array]:
        """Keys and values of the whole picture [T, B, C] twice, from those of this device's rows [h, W, B, C].

        The order of the tokens is unspecified: attention does not depend on it.
        """
        ...


def group_moments(x: Array, groups: int, rows: Array | None = None) -> tuple[Array, Array]:
    """Mean and biased variance of `x` [B, H, W, C] over rows, columns and the channels of a group: fp32 [B, G] each.

    The second moment is centred: E[x²] - E[x]² in fp32 has lost all digits at a mean of 300 and a deviation of 0.1.

    Args:
        rows: only so many, from the top, count; 0 for both moments if there are none.
    """
    x = x.astype(jnp.float32)
    batch, height, _, channels = x.shape

    def average(y: Array) -> Array:  # [B, H, W, C] -> [B, G]
        if rows is None:
            return y.mean((1, 2)).reshape(batch, groups, -1).mean(-1)
        y = jnp.where((jnp.arange(height) < rows)[None, :, None, None], y, 0)
        y = y.mean(2).sum(1) / jnp.maximum(rows, 1).astype(jnp.float32)
        return y.reshape(batch, groups, -1).mean(-1)

    mean = average(x)
    return mean, average(jnp.square(x - jnp.repeat(mean, channels // groups, 1)[:, None, None, :]))


def in_a_row(x: Array) -> Array:
    """The tokens of a map: [h, W, B, C] -> [h * W, B, C]."""
    return x.reshape(-1, *x.shape[2:])


class Whole:
    """The neutral exchange: this device holds every row, nothing is missing."""

    def halo(self, path: str, x: Array, above: int, below: int) -> Array:
        return jnp.pad(x, ((0, 0), (above, below), (0, 0), (0, 0)))

    def moments(self, path: str, x: Array, groups: int) -> tuple[Array, Array]:
        return group_moments(x, groups)

    def tokens(self, path: str, k: Array, v: Array) -> tuple[Array, Array]:
        return in_a_row(k), in_a_row(v)

    def carry(self) -> tuple[()]:
        """What the next step's exchange object needs of this one."""
        return ()

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

    def tokens(self, path: str, k: Array, v: Array) -> tuple[Array, Array, Array | None]:
        """Keys and values of the whole picture, from this device's `k`, `v` [B, t, C], and which of them exist.

        Returns [B, T, C] twice and a mask [T] that is True for the tokens of the picture, or None if all of them are.
        The order of the tokens is unspecified: attention does not depend on it.
        """
        ...


def group_moments(x: Array, groups: int) -> tuple[Array, Array]:
    """Mean and biased variance of `x` [B, H, W, C] over rows, columns and the channels of a group: fp32 [B, G] each.

    The second moment is centred: E[x²] - E[x]² in fp32 has lost all digits at a mean of 300 and a deviation of 0.1.
    """
    x = x.astype(jnp.float32)
    batch, channels = x.shape[0], x.shape[-1]
    mean = x.mean((1, 2)).reshape(batch, groups, -1).mean(-1)  # [B, G]
    centred = x - jnp.repeat(mean, channels // groups, 1)[:, None, None, :]
    return mean, jnp.square(centred).mean((1, 2)).reshape(batch, groups, -1).mean(-1)


class Whole:
    """The neutral exchange: this device holds every row, nothing is missing."""

    def halo(self, path: str, x: Array, above: int, below: int) -> Array:
        return jnp.pad(x, ((0, 0), (above, below), (0, 0), (0, 0)))

    def moments(self, path: str, x: Array, groups: int) -> tuple[Array, Array]:
        return group_moments(x, groups)

    def tokens(self, path: str, k: Array, v: Array) -> tuple[Array, Array, Array | None]:
        return k, v, None

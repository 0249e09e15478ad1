"""One device's rows: its edges, moments and padding."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from distrijax.nn.exchange import group_moments
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.messages import MeanVariance
from distrijax.parallel.transport import Edges, Transport


@dataclasses.dataclass(frozen=True)
class Slab:
    """One device's rows; padding is left out of all statistics, and the neighbours see it as zeros."""

    layout: SlabLayout
    transport: Transport

    def own_rows(self, height: int) -> Array | None:
        """Return how many of `height` rows belong to the picture, or None if no device has padding."""
        counts = self.layout.counts(height)
        return None if (counts == height).all() else jnp.asarray(counts)[self.transport.index()]

    def own_moments(self, x: Array, groups: int) -> MeanVariance:
        """Return the mean and variance of this device's rows, without padding."""
        return group_moments(x, groups, self.own_rows(x.shape[1]))

    def without_padding(self, x: Array) -> Array:
        """Return `x` [B, h, W, C] with zeros below the picture, as convolutions expect."""
        own = self.own_rows(x.shape[1])
        return x if own is None else jnp.where((jnp.arange(x.shape[1]) < own)[None, :, None, None], x, 0)

    def without_outside(self, x: Array, above: int, below: int) -> Array:
        """Return a slab `x` [B, above + h + below, W, C] with zeros wherever its rows are not the picture's."""
        height = x.shape[1] - above - below
        rows = self.transport.index() * height - above + jnp.arange(x.shape[1])
        inside = (rows >= 0) & (rows < self.layout.height_at(height))
        return jnp.where(inside[None, :, None, None], x, 0)

    def edges(self, x: Array, above: int, below: int) -> Edges:
        """Return the rows of `x` that the neighbours need: the first `below` and the last `above`."""
        return x[:, :below], x[:, x.shape[1] - above :]

    def weights(self, height: int) -> Array:
        """Return the share of each slab of `height` rows in the picture, fp32 [N, 1, 1]."""
        counts = self.layout.counts(height)
        return jnp.asarray((counts / counts.sum()).astype(np.float32))[:, None, None]

    def merge_moments(self, moments: MeanVariance, height: int) -> MeanVariance:
        """Return the moments of the whole picture [B, G] from those of all slabs [N, B, G] of `height` rows."""
        means, variances = moments
        weight = self.weights(height)
        mean = (weight * means).sum(0)
        return mean, (weight * (variances + jnp.square(means - mean[None]))).sum(0)

    def existing_tokens(self, tokens: Array, own: Array) -> Array:
        """Return the picture's tokens from all devices' [N * t, B, C], whose padding is at the end.

        Args:
            own: this device's feature map, [h, W, B, C].
        """
        height, width = own.shape[:2]
        return tokens[: self.layout.height_at(height) * width]

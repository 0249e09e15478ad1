"""Answers to group norms: mean and variance of the whole picture."""

import dataclasses

import jax.numpy as jnp
from jax import lax

from distrijax.parallel.messages import MeanVariance
from distrijax.parallel.slab import Slab


@dataclasses.dataclass(frozen=True)
class MomentsAnswer:
    """The base class of answers; by default they carry nothing, send nothing and wait for nothing."""

    carries = sends = waits = False

    def merge(
        self, own: MeanVariance, last: MeanVariance | None, delivered: MeanVariance | None, height: int, slab: Slab
    ) -> MeanVariance:
        """Return one group norm's moments of the whole picture, fp32 [B, G] each.

        Args:
            own: this device's moments of this step.
            last: this device's moments of the previous step, if carried.
            delivered: all devices' moments of the previous step [N, B, G], if carried.
            height: rows of a slab at this layer.
        """
        raise NotImplementedError


class OwnMoments(MomentsAnswer):
    """The moments of the device's own slab alone."""

    def merge(
        self, own: MeanVariance, last: MeanVariance | None, delivered: MeanVariance | None, height: int, slab: Slab
    ) -> MeanVariance:
        return own


class FreshMoments(MomentsAnswer):
    """The moments of all devices in this step, for which it waits."""

    sends = waits = True

    def merge(
        self, own: MeanVariance, last: MeanVariance | None, delivered: MeanVariance | None, height: int, slab: Slab
    ) -> MeanVariance:
        moments = slab.transport.gather(jnp.stack(own)[None])  # [N, 2, B, G]: one message
        return slab.merge_moments((moments[:, 0], moments[:, 1]), height)


class StaleMoments(MomentsAnswer):
    """This device's moments of this step, merged with the others' of the previous step."""

    carries = sends = True

    def merge(
        self, own: MeanVariance, last: MeanVariance | None, delivered: MeanVariance | None, height: int, slab: Slab
    ) -> MeanVariance:
        assert delivered is not None
        means, variances = (
            lax.dynamic_update_slice_in_dim(stale, fresh[None], slab.transport.index(), 0)
            for stale, fresh in zip(delivered, own, strict=True)
        )
        return slab.merge_moments((means, variances), height)


class CorrectedMoments(MomentsAnswer):
    """The picture's moments of the previous step, corrected by the change of this device's own moments since.

    The original adds the change to E[x] and E[x²]. Here the same is done with centred moments, which do not cancel:
    var = stale var + change of own var + 2 (change of own mean) (last own mean - stale mean). Where that is negative,
    the device's own variance is used. On slabs of few rows, a device's own change says little about the picture's:
    with four rows of latents, the corrected variance left marks at a boundary of a demo picture, `StaleMoments` none.
    """

    carries = sends = True

    def merge(
        self, own: MeanVariance, last: MeanVariance | None, delivered: MeanVariance | None, height: int, slab: Slab
    ) -> MeanVariance:
        assert last is not None
        assert delivered is not None
        stale_mean, stale_var = slab.merge_moments(delivered, height)
        (own_mean, own_var), (last_mean, last_var) = own, last
        change = own_mean - last_mean
        var = stale_var + (own_var - last_var) + 2 * change * (last_mean - stale_mean)
        return stale_mean + change, jnp.where(var < 0, own_var, var)

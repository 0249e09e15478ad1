"""Answers to group norms: mean and variance of the whole picture."""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax

from distrijax.parallel.messages import MeanVariance
from distrijax.parallel.slab import Slab


@dataclasses.dataclass(frozen=True)
class History:
    """One group norm's moments in earlier steps.

    Attributes:
        own: this device's, in the previous step.
        every: all devices', in the previous step [N, B, G].
        before: all devices', in the step before that, if an answer predicts.
        persistence: the share of a change that is expected to happen again.
    """

    own: MeanVariance
    every: MeanVariance
    before: MeanVariance | None
    persistence: Array


@dataclasses.dataclass(frozen=True)
class MomentsAnswer:
    """The base class of answers; by default they carry nothing, send nothing and wait for nothing."""

    carries = sends = waits = predicts = False

    def merge(self, own: MeanVariance, history: History | None, height: int, slab: Slab) -> MeanVariance:
        """Return one group norm's moments of the whole picture, fp32 [B, G] each.

        Args:
            own: this device's moments of this step.
            history: moments of earlier steps, if carried.
            height: rows of a slab at this layer.
        """
        raise NotImplementedError


class OwnMoments(MomentsAnswer):
    """The moments of the device's own slab alone."""

    def merge(self, own: MeanVariance, history: History | None, height: int, slab: Slab) -> MeanVariance:
        return own


class FreshMoments(MomentsAnswer):
    """The moments of all devices in this step, for which it waits."""

    sends = waits = True

    def merge(self, own: MeanVariance, history: History | None, height: int, slab: Slab) -> MeanVariance:
        moments = slab.transport.gather(jnp.stack(own)[None])  # [N, 2, B, G]: one message
        return slab.merge_moments((moments[:, 0], moments[:, 1]), height)


class StaleMoments(MomentsAnswer):
    """This device's moments of this step, merged with the others' of the previous step."""

    carries = sends = True

    def merge(self, own: MeanVariance, history: History | None, height: int, slab: Slab) -> MeanVariance:
        assert history is not None
        means, variances = (
            lax.dynamic_update_slice_in_dim(stale, fresh[None], slab.transport.index(), 0)
            for stale, fresh in zip(history.every, own, strict=True)
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

    def merge(self, own: MeanVariance, history: History | None, height: int, slab: Slab) -> MeanVariance:
        assert history is not None
        stale_mean, stale_var = slab.merge_moments(history.every, height)
        (own_mean, own_var), (last_mean, last_var) = own, history.own
        change = own_mean - last_mean
        var = stale_var + (own_var - last_var) + 2 * change * (last_mean - stale_mean)
        return stale_mean + change, jnp.where(var < 0, own_var, var)


class PredictedMoments(MomentsAnswer):
    """The picture's moments of the previous step, and the part of this device's change since that is the picture's.

    How much of a slab's change the whole picture shares is estimated from the last change of all slabs, which every
    device knows: by layer, picture and moment, as the ratio of the square of the mean change to the mean square, summed
    over groups. It is 1 if all slabs changed alike and 1 / N if they changed independently: with a share of 1 this is
    `CorrectedMoments`, with 1 / N `StaleMoments`. Half of the persistence of other pieces is the best for moments.

    The second moment is taken about the picture's stale mean, so that nothing cancels. Where the variance comes out
    negative, the device's own is used.
    """

    carries = sends = predicts = True

    def merge(self, own: MeanVariance, history: History | None, height: int, slab: Slab) -> MeanVariance:
        assert history is not None
        assert history.before is not None
        stale_mean, _ = slab.merge_moments(history.every, height)

        def about_stale_mean(moments: MeanVariance) -> Array:
            """Return the mean, less the stale mean, and the second moment about it: [2, ..., B, G]."""
            mean, variance = moments
            return jnp.stack([mean - stale_mean, variance + jnp.square(mean - stale_mean)])

        now, last = about_stale_mean(own), about_stale_mean(history.own)  # [2, B, G]
        every, before = about_stale_mean(history.every), about_stale_mean(history.before)  # [2, N, B, G]
        weight = slab.weights(height)
        change = every - before
        common = (weight * change).sum(1)
        share = jnp.square(common).sum(-1) / jnp.maximum((weight * jnp.square(change)).sum((1, 3)), 1e-30)  # [2, B]
        again = history.persistence / 2
        own_change = lax.dynamic_index_in_dim(change, slab.transport.index(), 1, keepdims=False)
        surprise = now - last - again * own_change
        mean, second = (weight * every).sum(1) + again * common + share[..., None] * surprise
        variance = second - jnp.square(mean)
        return stale_mean + mean, jnp.where(variance < 0, own[1], variance)

"""Answers to group norms: mean and variance of the whole picture."""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax

from distrijax.parallel.messages import MeanVariance, Moments
from distrijax.parallel.slab import Slab


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What is known of this step's moments before it begins, of all norms at once: small kernels cost 2 µs each.

    All moments are the distance of the mean from the picture's stale mean, and the second moment about that.

    Attributes:
        origin: the picture's stale means [L, B, G].
        picture: the picture's expected moments [L, 2, B, G].
        own: this device's expected moments [L, 2, B, G].
        share: how much of a change of this device's is the picture's [L, 2, B, 1].
    """

    origin: Array
    picture: Array
    own: Array
    share: Array


@dataclasses.dataclass(frozen=True)
class History:
    """The moments of all group norms in earlier steps.

    Attributes:
        own: this device's, in the previous step.
        every: all devices', in the previous step.
        before: all devices', in the step before that, if an answer predicts.
        persistence: the share of the last change that is expected to happen again.
        forecast: what an answer that predicts makes of them.
    """

    own: Moments
    every: Moments
    before: Moments | None = None
    persistence: Array | float = 0.0
    forecast: Forecast | None = None


@dataclasses.dataclass(frozen=True)
class MomentsAnswer:
    """The base class of answers; by default they carry nothing, send nothing and wait for nothing."""

    carries = sends = waits = predicts = False

    def prepare(self, history: History, slab: Slab) -> History:
        """Return what the merges of this step need, from what is known before it begins."""
        return history

    def merge(self, own: MeanVariance, layer: str, history: History | None, height: int, slab: Slab) -> MeanVariance:
        """Return one group norm's moments of the whole picture, fp32 [B, G] each.

        Args:
            own: this device's moments of this step.
            history: moments of earlier steps, if carried.
            height: rows of a slab at this layer.
        """
        raise NotImplementedError


class OwnMoments(MomentsAnswer):
    """The moments of the device's own slab alone."""

    def merge(self, own: MeanVariance, layer: str, history: History | None, height: int, slab: Slab) -> MeanVariance:
        return own


class FreshMoments(MomentsAnswer):
    """The moments of all devices in this step, for which it waits."""

    sends = waits = True

    def merge(self, own: MeanVariance, layer: str, history: History | None, height: int, slab: Slab) -> MeanVariance:
        moments = slab.transport.gather(jnp.stack(own)[None])  # [N, 2, B, G]: one message
        return slab.merge_moments((moments[:, 0], moments[:, 1]), height)


class StaleMoments(MomentsAnswer):
    """This device's moments of this step, merged with the others' of the previous step."""

    carries = sends = True

    def merge(self, own: MeanVariance, layer: str, history: History | None, height: int, slab: Slab) -> MeanVariance:
        assert history is not None
        means, variances = (
            lax.dynamic_update_slice_in_dim(stale, fresh[None], slab.transport.index(), 0)
            for stale, fresh in zip(history.every[layer], own, strict=True)
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

    def merge(self, own: MeanVariance, layer: str, history: History | None, height: int, slab: Slab) -> MeanVariance:
        assert history is not None
        stale_mean, stale_var = slab.merge_moments(history.every[layer], height)
        (own_mean, own_var), (last_mean, last_var) = own, history.own[layer]
        change = own_mean - last_mean
        var = stale_var + (own_var - last_var) + 2 * change * (last_mean - stale_mean)
        return stale_mean + change, jnp.where(var < 0, own_var, var)


class PredictedMoments(MomentsAnswer):
    """The picture's moments of the previous step, and the part of this device's change since that is the picture's.

    How much of a slab's change the whole picture shares is estimated from the last change of all slabs, which every
    device knows: by layer, picture and moment, as the ratio of the square of the mean change to the mean square, summed
    over groups. It is 1 if all slabs changed alike and 1 / N if they changed independently: with a share of 1 this is
    `CorrectedMoments`, with 1 / N `StaleMoments`. It is 1, too, in the second of all steps, before which no change is
    known: variances of 0 stand for that. Half of the persistence of other pieces is the best for moments.

    The second moment is taken about the picture's stale mean, so that nothing cancels. Where the variance comes out
    negative, the device's own is used.
    """

    carries = sends = predicts = True

    def prepare(self, history: History, slab: Slab) -> History:
        every, before, own = history.every, history.before, history.own
        assert before is not None
        weight = jnp.stack([slab.weights(height) for _, height in every.heights])[:, None]  # [L, 1, N, 1, 1]

        def average(x: Array) -> Array:
            return (weight * x).sum(2, keepdims=True)  # [L, ., 1, B, G]

        origin = average(every.values[:, :1])

        def about_origin(values: Array) -> Array:
            means, variances = values[:, :1], values[:, 1:]
            return jnp.concatenate([means - origin, variances + jnp.square(means - origin)], 1)

        now = about_origin(every.values)
        change = now - about_origin(before.values)
        common = average(change)
        shared, total = (x.sum(-1, keepdims=True) for x in (jnp.square(common), average(jnp.square(change))))
        own_change = lax.dynamic_slice_in_dim(change, slab.transport.index(), 1, 2)
        again = history.persistence / 2
        parts = (
            average(now) + again * common,
            about_origin(own.values[:, :, None]) + again * own_change,
            jnp.where((before.values[:, 1:] > 0).any((2, 4), keepdims=True), shared / jnp.maximum(total, 1e-30), 1.0),
        )
        forecast = Forecast(origin[:, 0, 0], *(part[:, :, 0] for part in parts))
        return dataclasses.replace(history, forecast=forecast)

    def merge(self, own: MeanVariance, layer: str, history: History | None, height: int, slab: Slab) -> MeanVariance:
        assert history is not None
        assert history.forecast is not None
        forecast, index = history.forecast, history.own.index(layer)
        origin, share = forecast.origin[index], forecast.share[index]
        distance = own[0] - origin
        now = jnp.stack([distance, own[1] + jnp.square(distance)])
        mean, second = forecast.picture[index] + share * (now - forecast.own[index])
        variance = second - jnp.square(mean)
        return origin + mean, jnp.where(variance < 0, own[1], variance)

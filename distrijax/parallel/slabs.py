"""The exchange objects of a device that holds one slab of a picture's rows: inside `shard_map` or `vmap` over `patch`.

A synchronous step takes the neighbours' rows of this very step, and equals one device to rounding. A displaced one
takes what they sent a step ago (DistriFusion, arXiv 2402.19481): nothing in it waits for the network, since all of it
can be sent before the first layer. The modes, under the names of the original, differ in their group norms.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from distrijax.parallel.exchange import Whole, group_moments, in_a_row
from distrijax.parallel.pieces import Carried, Moments, Pieces, Received, deliver, swap_all
from distrijax.parallel.rows import Rows
from distrijax.parallel.wire import MESH, Edges, Wire

# Asked for anew in every step, whatever the mode: a few kB, on which nothing but the latents has to be waited for.
LATENTS = "conv_in"  # the layer whose halos are rows of latents
FRESH = frozenset({LATENTS, "guidance.prompted", "guidance.guided"})

# Layers whose stale halos travel with the fresh rows of latents, for which the step has to wait anyway: nothing before
# them is long enough to hide the message with all others (7 MB each way in SDXL at 1024x1024, 35 µs).
FIRST = 6


class Slab:
    """What a device can say of its own rows. Rows of padding count for nothing and are zero to others."""

    def __init__(self, rows: Rows, wire: Wire = MESH):
        self.rows, self.wire = rows, wire

    def own_rows(self, height: int) -> Array | None:
        """How many rows of a slab of `height` are of the picture; None where no device has any padding."""
        counts = self.rows.counts(height)
        return None if (counts == height).all() else jnp.asarray(counts)[self.wire.index()]

    def own_moments(self, x: Array, groups: int) -> tuple[Array, Array]:
        return group_moments(x, groups, self.own_rows(x.shape[1]))

    def without_padding(self, x: Array) -> Array:
        """`x` [B, h, W, C] with zeros in the rows past the picture's bottom: what a convolution expects there."""
        own = self.own_rows(x.shape[1])
        return x if own is None else jnp.where((jnp.arange(x.shape[1]) < own)[None, :, None, None], x, 0)

    def edges(self, x: Array, above: int, below: int) -> Edges:
        """What the neighbours want of `x`: its first rows, `below` of the one above, and its last."""
        return x[:, :below], x[:, x.shape[1] - above :]

    def merged(self, moments: tuple[Array, Array], height: int) -> tuple[Array, Array]:
        """Moments of the whole picture [B, G] from those of all slabs [N, B, G], where slabs have `height` rows."""
        means, variances = moments
        counts = self.rows.counts(height)
        weight = jnp.asarray((counts / counts.sum()).astype(np.float32))[:, None, None]
        mean = (weight * means).sum(0)
        return mean, (weight * (variances + jnp.square(means - mean[None]))).sum(0)

    def before_tokens(self, path: str, x: Array) -> Array:
        return x

    def carry(self) -> Any:
        """What the next step's exchange object needs of this one."""
        return ()


class Alone(Slab):
    """`naive_patch`: every slab is a picture of its own. The baseline that shows what the exchange is for."""

    def halo(self, path: str, x: Array, above: int, below: int) -> Array:
        return jnp.pad(self.without_padding(x), ((0, 0), (above, below), (0, 0), (0, 0)))

    def moments(self, path: str, x: Array, groups: int) -> tuple[Array, Array]:
        return self.own_moments(x, groups)

    def tokens(self, path: str, k: Array, v: Array) -> tuple[Array, Array]:
        return in_a_row(k), in_a_row(v)


class Synchronous(Slab):
    """`full_sync`: every layer waits for the others' rows of this step."""

    def __init__(self, rows: Rows, wire: Wire = MESH):
        super().__init__(rows, wire)
        self.sent = Pieces()

    def halo(self, path: str, x: Array, above: int, below: int) -> Array:
        x = self.without_padding(x)
        return _between(x, self.wire.swap(self._keep(self.sent.halos, path, self.edges(x, above, below))))

    def moments(self, path: str, x: Array, groups: int) -> tuple[Array, Array]:
        own = self._keep(self.sent.moments, path, self.own_moments(x, groups))
        moments = self.wire.gather(jnp.stack(own)[None])  # [N, 2, B, G]: one message
        return self.merged((moments[:, 0], moments[:, 1]), x.shape[1])

    def tokens(self, path: str, k: Array, v: Array) -> tuple[Array, Array]:
        own = self._keep(self.sent.tokens, path, (in_a_row(k), in_a_row(v)))
        return self._existing(self.wire.gather(own[0]), k), self._existing(self.wire.gather(own[1]), v)

    def _keep(self, kind: dict[str, Any], path: str, piece: Any) -> Any:
        assert path not in kind, f"{path} asked twice in one step"
        if path not in FRESH:
            kind[path] = piece
        return piece

    def _existing(self, tokens: Array, own: Array) -> Array:
        """Those of all devices' tokens [N * t, B, C] that are of the picture: the padding is at the end."""
        height, width = own.shape[:2]
        return tokens[: self.rows.inside(height) * width]


class WarmUp(Synchronous):
    """A synchronous step that one of `displaced` may follow."""

    def __init__(self, rows: Rows, displaced: "type[Displaced]", wire: Wire = MESH):
        super().__init__(rows, wire)
        self.displaced = displaced

    def carry(self) -> Any:
        return self.displaced.begin(self.sent, self.wire)


class Displaced(Synchronous):
    """`sync_gn`: halos, keys and values are those that were sent in the last step; group norms wait for this step's.

    Args:
        carried: by the scan, from the last step: `begin` of what was sent in it.
    """

    def __init__(self, rows: Rows, carried: Any, wire: Wire = MESH):
        super().__init__(rows, wire)
        self.stale, self.received = self.unpack(carried)

    @classmethod
    def begin(cls, sent: Pieces, wire: Wire = MESH) -> Any:
        """What the scan carries into a displaced step, of what was sent in the one before."""
        halos = list(sent.halos.items())
        moments = Moments.stack(sent.moments) if cls.sends_moments else None
        return Carried(dict(halos[FIRST:]), dict(halos[:FIRST]), moments, sent.tokens)

    def unpack(self, carried: Any) -> tuple[Carried, Received]:
        return carried, deliver(carried, self.wire)

    def carry(self) -> Any:
        return self.begin(self.sent, self.wire)

    sends_moments = False  # so far as group norms use the last step's

    def halo(self, path: str, x: Array, above: int, below: int) -> Array:
        x = self.without_padding(x)
        edges = self._keep(self.sent.halos, path, self.edges(x, above, below))
        if path == LATENTS:
            self.received.halos.update(swap_all(self.stale.first | {path: edges}, self.wire))
        return _between(x, self.received.halos[path])

    def before_tokens(self, path: str, x: Array) -> Array:
        # The new keys are written over the old, which must have been sent by then: else XLA copies them at the end.
        x, self.received.tokens[path] = lax.optimization_barrier((x, self.received.tokens[path]))
        return x

    def tokens(self, path: str, k: Array, v: Array) -> tuple[Array, Array]:
        # XLA would write what the next step sends at this one's end, and keep the products until then: 480 MB.
        own = self._keep(self.sent.tokens, path, lax.optimization_barrier((in_a_row(k), in_a_row(v))))
        start = self.wire.index() * own[0].shape[0]
        keys, values = (
            lax.dynamic_update_slice_in_dim(stale, fresh, start, 0)
            for stale, fresh in zip(self.received.tokens[path], own, strict=True)
        )
        return self._existing(keys, k), self._existing(values, v)


class SeparateMoments(Displaced):
    """`separate_gn`: group norms see this device's slab alone."""

    def moments(self, path: str, x: Array, groups: int) -> tuple[Array, Array]:
        return super().moments(path, x, groups) if path in FRESH else self.own_moments(x, groups)


class StaleMoments(Displaced):
    """`stale_gn`: group norms average the last step's moments of the others with this device's own."""

    sends_moments = True

    def moments(self, path: str, x: Array, groups: int) -> tuple[Array, Array]:
        if path in FRESH:
            return super().moments(path, x, groups)
        return self.combined(path, self._keep(self.sent.moments, path, self.own_moments(x, groups)), x.shape[1])

    def combined(self, path: str, own: tuple[Array, Array], height: int) -> tuple[Array, Array]:
        means, variances = (
            lax.dynamic_update_slice_in_dim(stale, fresh[None], self.wire.index(), 0)
            for stale, fresh in zip(self.received.moments[path], own, strict=True)
        )
        return self.merged((means, variances), height)


class CorrectedMoments(StaleMoments):
    """`corrected_async_gn`: the last step's moments of the picture, changed as this device's own have changed since.

    The original adds the change to E[x] and E[x²]. The same in centred moments, which do not cancel:
    var = stale var + own change of var + 2 (own change of mean) (own stale mean - stale mean). Where that is negative,
    it is this device's own variance. Where a slab is few rows, its own change says little of the picture's: with four
    rows of latents the corrected variance left marks at a boundary in a demo picture, where `stale_gn` left none.
    """

    def combined(self, path: str, own: tuple[Array, Array], height: int) -> tuple[Array, Array]:
        stale_mean, stale_var = self.merged(self.received.moments[path], height)
        (own_mean, own_var), (old_mean, old_var) = own, self.stale.moments[path]
        change = own_mean - old_mean
        var = stale_var + (own_var - old_var) + 2 * change * (old_mean - stale_mean)
        return stale_mean + change, jnp.where(var < 0, own_var, var)


class NoSync(SeparateMoments):
    """`no_sync`: what was received in the last synchronous step stays in use to the end; nothing is sent any more."""

    @classmethod
    def begin(cls, sent: Pieces, wire: Wire = MESH) -> Any:
        own = super().begin(sent)
        return deliver(dataclasses.replace(own, halos=own.halos | own.first), wire)

    def unpack(self, carried: Any) -> tuple[Carried, Received]:
        return Carried(), carried

    def carry(self) -> Any:
        halos = {path: halo for path, halo in self.received.halos.items() if path != LATENTS}
        return dataclasses.replace(self.received, halos=halos)


def _between(x: Array, outside: Edges) -> Array:
    above, below = outside
    return jnp.concatenate([above, x, below], 1)


DISPLACED: dict[str, type[Displaced]] = {
    "corrected_async_gn": CorrectedMoments,
    "stale_gn": StaleMoments,
    "sync_gn": Displaced,
    "separate_gn": SeparateMoments,
    "no_sync": NoSync,
}


def exchange(mode: str, rows: Rows, *, displaced: bool, wire: Wire = MESH) -> Callable[[Any], Any]:
    """Makes the exchange object of one step, from what the step before carried."""
    if rows.patches == 1:
        return lambda carried: Whole()
    if mode == "naive_patch":
        return lambda carried: Alone(rows, wire)
    if displaced:
        return lambda carried: DISPLACED[mode](rows, carried, wire)
    if mode in DISPLACED:
        return lambda carried: WarmUp(rows, DISPLACED[mode], wire)
    return lambda carried: Synchronous(rows, wire)

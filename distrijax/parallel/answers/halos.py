"""Answers to convolutions: the rows around a slab."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from distrijax.nn.exchange import Fit
from distrijax.parallel.messages import Persistence, deal_edges, gather_edges, swap_all
from distrijax.parallel.slab import Slab
from distrijax.parallel.transport import Edges, Transport

Halos = dict[str, Edges]


@dataclasses.dataclass(frozen=True)
class HaloAnswer:
    """The base class of answers; by default they carry nothing, send nothing and wait for nothing."""

    carries = sends = waits = predicts = False
    with_moments = False  # whether the message of a layer travels with that of the group norm before it

    def receives(self, devices: int) -> tuple[int, int]:
        """Return the messages of one layer, and the rows that each of these devices receives."""
        return 2, 2

    def message(self, own: Edges, past: Edges | None, persistence: Persistence) -> tuple[Edges, Edges | None]:
        """Return the edges to send for one layer, and what to remember for the message of the next step.

        Args:
            own: those of this device in this step.
            past: what the last step remembered.
        """
        return own, None

    def keep(self, own: Halos, delivered: Halos, transport: Transport) -> Halos:
        """Return what the next step needs from this step's messages `own` and the halos `delivered` in it."""
        return {}

    def deliver(self, carried: Halos, transport: Transport) -> Halos:
        """Return the rows around this device's slab, by layer, from what the previous step kept."""
        return {}

    def extend(
        self, x: Array, above: int, below: int, fit: Fit, delivered: Edges | None, slab: Slab
    ) -> tuple[Array, Edges]:
        """Return one layer's rows, fitted, with those around them, and this device's own edges."""
        x = slab.without_padding(fit(x)(x))
        own = slab.edges(x, above, below)
        with jax.named_scope("halos"):
            rows = self.around(own, delivered, slab)
        return jnp.concatenate([rows[0], x, rows[1]], 1), own

    def around(self, own: Edges, delivered: Edges | None, slab: Slab) -> Edges:
        """Return the rows above and below the slab, from one layer's own edges and the halo delivered for it."""
        raise NotImplementedError


class FreshHalos(HaloAnswer):
    """The neighbours' rows of this step, for which it waits."""

    sends = waits = True

    def receives(self, devices: int) -> tuple[int, int]:
        return 1, devices - 1

    def around(self, own: Edges, delivered: Edges | None, slab: Slab) -> Edges:
        return deal_edges(own, slab.transport)


class EarlyHalos(FreshHalos):
    """Fresh halos that are sent as the layer before made them, and fitted by the device that receives them.

    So they travel in the same message as the moments that a group norm waits for: one wait in place of two. For
    policies whose moments are the same on all devices; where they are not, a neighbour would make other rows of them.
    """

    with_moments = True

    def receives(self, devices: int) -> tuple[int, int]:
        return 1, 2 * (devices - 1)

    def extend(
        self, x: Array, above: int, below: int, fit: Fit, delivered: Edges | None, slab: Slab
    ) -> tuple[Array, Edges]:
        with jax.named_scope("halos"):
            rows = gather_edges(slab.edges(x, above, below), slab.transport)
        y = slab.without_outside(fit(x)(jnp.concatenate([rows[0], x, rows[1]], 1)), above, below)
        return y, slab.edges(y[:, above : above + x.shape[1]], above, below)


class StaleHalos(HaloAnswer):
    """The neighbours' rows of the previous step."""

    carries = sends = True

    def keep(self, own: Halos, delivered: Halos, transport: Transport) -> Halos:
        return own

    def deliver(self, carried: Halos, transport: Transport) -> Halos:
        return swap_all(carried, transport)

    def around(self, own: Edges, delivered: Edges | None, slab: Slab) -> Edges:
        assert delivered is not None
        return delivered


class PredictedHalos(StaleHalos):
    """The rows that the neighbours expected to have in this step, by the last change of theirs."""

    predicts = True

    def message(self, own: Edges, past: Edges | None, persistence: Persistence) -> tuple[Edges, Edges | None]:
        return persistence.predict(own, past)


class FrozenHalos(StaleHalos):
    """The neighbours' rows of the last synchronous step; nothing is sent after it."""

    sends = False

    def keep(self, own: Halos, delivered: Halos, transport: Transport) -> Halos:
        return delivered or swap_all(own, transport)

    def deliver(self, carried: Halos, transport: Transport) -> Halos:
        return carried


class ZeroHalos(HaloAnswer):
    """Zeros, as if every slab were a picture of its own."""

    def around(self, own: Edges, delivered: Edges | None, slab: Slab) -> Edges:
        first, last = own
        return jax.tree.map(jnp.zeros_like, (last, first))

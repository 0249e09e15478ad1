"""Answers to convolutions: the rows around a slab."""

import dataclasses

import jax
import jax.numpy as jnp

from distrijax.parallel.messages import swap_all
from distrijax.parallel.slab import Slab
from distrijax.parallel.transport import Edges, Transport

Halos = dict[str, Edges]


@dataclasses.dataclass(frozen=True)
class HaloAnswer:
    """What an answer does by default: it carries nothing, sends nothing and waits for nothing."""

    carries = sends = waits = False

    def keep(self, own: Halos, delivered: Halos, transport: Transport) -> Halos:
        """Return what the next step needs of this step's `own` edges and of what was `delivered` in it."""
        return {}

    def deliver(self, carried: Halos, transport: Transport) -> Halos:
        """Return the rows around this device's slab, by layer, from what the last step kept."""
        return {}

    def around(self, own: Edges, delivered: Edges | None, slab: Slab) -> Edges:
        """Return the rows above and below the slab, given one layer's own edges and what was delivered for it."""
        raise NotImplementedError


class FreshHalos(HaloAnswer):
    """Waits for the neighbours' rows of this step."""

    sends = waits = True

    def around(self, own: Edges, delivered: Edges | None, slab: Slab) -> Edges:
        return slab.transport.swap(own)


class StaleHalos(HaloAnswer):
    """Takes the neighbours' rows of the last step."""

    carries = sends = True

    def keep(self, own: Halos, delivered: Halos, transport: Transport) -> Halos:
        return own

    def deliver(self, carried: Halos, transport: Transport) -> Halos:
        return swap_all(carried, transport)

    def around(self, own: Edges, delivered: Edges | None, slab: Slab) -> Edges:
        assert delivered is not None
        return delivered


class FrozenHalos(StaleHalos):
    """Takes the neighbours' rows of the last synchronous step, to the end: nothing is sent any more."""

    sends = False

    def keep(self, own: Halos, delivered: Halos, transport: Transport) -> Halos:
        return delivered or swap_all(own, transport)

    def deliver(self, carried: Halos, transport: Transport) -> Halos:
        return carried


class ZeroHalos(HaloAnswer):
    """Treats every slab as a picture of its own, with zeros around it."""

    def around(self, own: Edges, delivered: Edges | None, slab: Slab) -> Edges:
        first, last = own
        return jax.tree.map(jnp.zeros_like, (last, first))

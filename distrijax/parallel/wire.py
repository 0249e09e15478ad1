"""The transfers themselves: all that a device asks of those that share its picture."""

import dataclasses
from typing import Protocol

import jax.numpy as jnp
from jax import Array, lax

AXIS = "patch"  # the mesh axis along which a picture's rows are dealt

Edges = tuple[Array, Array]  # the first rows of a slab, wanted above, and its last, wanted below: [B, n, W, C] each


class Wire(Protocol):
    """How a device reaches the others."""

    def count(self) -> int:
        """How many there are."""
        ...

    def index(self) -> Array | int:
        """Which this one is, from the top."""
        ...

    def swap(self, edges: Edges) -> Edges:
        """The rows above and below this device's own, from its neighbours' `edges`; zero outside the picture."""
        ...

    def gather(self, x: Array) -> Array:
        """`x` of every device, one after the other: [n, ...] -> [N * n, ...]."""
        ...

    def total(self, x: Array) -> Array:
        """The sum of all devices' `x`."""
        ...


class Mesh:
    """The devices of the mesh axis, real or virtual: inside `shard_map` or `vmap` over it."""

    def count(self) -> int:
        return lax.axis_size(AXIS)

    def index(self) -> Array:
        return lax.axis_index(AXIS)

    def swap(self, edges: Edges) -> Edges:
        count, index = self.count(), self.index()
        top, bottom = edges
        # The full ring, its ends masked: `vmap` takes no permutation that leaves a device out.
        above = lax.ppermute(bottom, AXIS, [(i, (i + 1) % count) for i in range(count)])
        below = lax.ppermute(top, AXIS, [((i + 1) % count, i) for i in range(count)])
        return jnp.where(index > 0, above, 0), jnp.where(index < count - 1, below, 0)

    def gather(self, x: Array) -> Array:
        return lax.all_gather(x, AXIS, tiled=True)

    def total(self, x: Array) -> Array:
        return lax.psum(x, AXIS)


@dataclasses.dataclass(frozen=True)
class Copies:
    """One of `devices` without the others: what it would receive is a copy of its own.

    Its picture is none, but it computes and copies as much as one of so many: their share, timed on one device.
    """

    devices: int

    def count(self) -> int:
        return self.devices

    def index(self) -> int:
        return (self.devices - 1) // 2  # one with neighbours on both sides, and no padding

    def swap(self, edges: Edges) -> Edges:
        top, bottom = edges
        return bottom, top

    def gather(self, x: Array) -> Array:
        return jnp.broadcast_to(x[None], (self.devices, *x.shape)).reshape(-1, *x.shape[1:])

    def total(self, x: Array) -> Array:
        return x


MESH = Mesh()

"""The collectives of the devices that share a picture."""

import dataclasses
from typing import Protocol

import jax.numpy as jnp
from jax import Array, lax

AXIS = "patch"  # the mesh axis along which a picture's rows are divided

Edges = tuple[Array, Array]
"""The first rows of a slab, for the device above, and its last rows, for the device below: [B, n, W, C] each. Once
delivered: the rows above a slab and those below it."""


class Transport(Protocol):
    """The collectives that an exchange uses."""

    def count(self) -> int:
        """Return the number of devices."""
        ...

    def index(self) -> Array | int:
        """Return the position of this device, counted from the top."""
        ...

    def swap(self, edges: Edges) -> Edges:
        """Return the rows above and below this device's own, from its neighbours' `edges`; zero outside the picture."""
        ...

    def gather(self, x: Array) -> Array:
        """Return every device's `x`, concatenated: [n, ...] -> [N * n, ...]."""
        ...

    def deal(self, x: Array) -> Array:
        """Return what every device has for this one: of [N, ...], part i is for device i, and then from it."""
        ...

    def sum(self, x: Array) -> Array:
        """Return the sum of every device's `x`."""
        ...


class MeshTransport:
    """Collectives over the mesh axis, real or virtual, for use inside `shard_map` or `vmap` over it."""

    def count(self) -> int:
        return lax.axis_size(AXIS)

    def index(self) -> Array | int:
        return lax.axis_index(AXIS) if self.count() > 1 else 0

    def swap(self, edges: Edges) -> Edges:
        count, index = self.count(), self.index()
        top, bottom = edges
        # A full ring with masked ends, since `vmap` rejects a permutation that leaves a device out.
        above = lax.ppermute(bottom, AXIS, [(i, (i + 1) % count) for i in range(count)])
        below = lax.ppermute(top, AXIS, [((i + 1) % count, i) for i in range(count)])
        return jnp.where(index > 0, above, 0), jnp.where(index < count - 1, below, 0)

    def gather(self, x: Array) -> Array:
        return lax.all_gather(x, AXIS, tiled=True)

    def deal(self, x: Array) -> Array:
        return lax.all_to_all(x, AXIS, 0, 0, tiled=True)

    def sum(self, x: Array) -> Array:
        return lax.psum(x, AXIS)


@dataclasses.dataclass(frozen=True)
class LocalCopies:
    """A fake transport for benchmarks: one device of `devices` that receives copies of its own data.

    Each receive is a local copy of the same shape as the real one, so the device computes and copies as much as in a
    real mesh. The output is not a valid picture.
    """

    devices: int

    def count(self) -> int:
        return self.devices

    def index(self) -> int:
        return (self.devices - 1) // 2  # a device with neighbours on both sides and no padding

    def swap(self, edges: Edges) -> Edges:
        top, bottom = edges
        return bottom, top

    def gather(self, x: Array) -> Array:
        return jnp.broadcast_to(x[None], (self.devices, *x.shape)).reshape(-1, *x.shape[1:])

    def deal(self, x: Array) -> Array:
        return x

    def sum(self, x: Array) -> Array:
        return x


MESH = MeshTransport()

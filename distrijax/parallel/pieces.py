"""What devices send each other: the pieces that each device makes in a step, and the transfers that deliver them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from distrijax.parallel.wire import MESH, Edges, Wire


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A device's own share of a step's exchange, by layer path, in the order in which layers asked."""

    halos: dict[str, Edges] = dataclasses.field(default_factory=dict)
    moments: dict[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)  # mean, variance: fp32 [B, G]
    tokens: dict[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)  # keys, values: [t, B, C]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and variance of every group norm in one array: writing each by itself, 512 bytes, takes 1 % of a step."""

    values: Array  # fp32 [L, 2, B, G], or of all devices [L, 2, N, B, G]
    paths: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def stack(cls, layers: dict[str, tuple[Array, Array]]) -> "Moments":
        values = jnp.stack([moment for layer in layers.values() for moment in layer])
        return cls(values.reshape(len(layers), 2, *values.shape[1:]), tuple(layers))

    def __getitem__(self, path: str) -> tuple[Array, Array]:
        mean, variance = self.values[self.paths.index(path)]
        return mean, variance


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carried:
    """The pieces as the denoising scan carries them to the next step, which sends them."""

    halos: dict[str, Edges] = dataclasses.field(default_factory=dict)
    first: dict[str, Edges] = dataclasses.field(default_factory=dict)  # halos of the first layers, sent apart
    moments: Any = None  # Moments, or None where group norms do not use the last step's
    tokens: dict[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Received:
    """What a device has of the others' pieces once they are delivered."""

    halos: dict[str, Edges]  # the rows above the slab and below it
    moments: Any  # Moments of all devices, or None
    tokens: dict[str, tuple[Array, Array]]  # of all devices, [N * t, B, C]


def deliver(carried: Carried, wire: Wire = MESH) -> Received:
    """Send all but the first halos: a message to each neighbour, one sum of all moments, keys and values by layer.

    A launch costs 10 to 20 µs, a whole step of SDXL on eight GPUs a few milliseconds: the 39 halos and 46 moments of a
    step must not be a message each. Keys and values are large, and packing them would copy 0.9 GB.
    """
    return Received(
        swap_all(carried.halos, wire),
        None if carried.moments is None else _gather_all(carried.moments, wire),
        {path: (wire.gather(k), wire.gather(v)) for path, (k, v) in carried.tokens.items()},
    )


def swap_all(halos: dict[str, Edges], wire: Wire) -> dict[str, Edges]:
    """The neighbours' edges of many layers at once: one message to each."""
    if not halos:
        return {}
    tops, like_tops = ravel_pytree({path: top for path, (top, _) in halos.items()})
    bottoms, like_bottoms = ravel_pytree({path: bottom for path, (_, bottom) in halos.items()})
    above, below = wire.swap((tops, bottoms))
    received = like_bottoms(above), like_tops(below)
    return {path: (received[0][path], received[1][path]) for path in halos}


def _gather_all(moments: Moments, wire: Wire) -> Moments:
    """A gather as a sum, each device's part at its own place: XLA would put a gather of these 24 kB into one message
    with the first keys and values, 28 MB for which the first group norm then waits."""
    place = (jnp.arange(wire.count()) == wire.index())[:, None, None]  # [N, 1, 1]
    return dataclasses.replace(moments, values=wire.total(jnp.where(place, moments.values[:, :, None], 0)))

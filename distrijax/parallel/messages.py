"""The pieces that devices compute in a step for each other, and the messages that deliver them."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from distrijax.parallel.transport import Edges, Transport

T = TypeVar("T")

MeanVariance = tuple[Array, Array]  # fp32 [B, G] each
KeysValues = tuple[Array, Array]  # [t, B, C] each; of all devices [N * t, B, C]


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces that one device computed in one step, by layer, in the order in which the layers asked."""

    halos: dict[str, Edges] = dataclasses.field(default_factory=dict)
    moments: dict[str, MeanVariance] = dataclasses.field(default_factory=dict)
    tokens: dict[str, KeysValues] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and variance of every group norm in one array: separate writes of 512 bytes each would take 1 % of a step.

    Attributes:
        values: fp32 [L, 2, B, G], or of all devices [L, 2, N, B, G].
        heights: rows of a slab at each of the L norms, by name.
    """

    values: Array
    heights: tuple[tuple[str, int], ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def stack(cls, moments: dict[str, MeanVariance], heights: dict[str, int]) -> "Moments":
        values = jnp.stack([moment for pair in moments.values() for moment in pair])
        return cls(values.reshape(len(moments), 2, *values.shape[1:]), tuple((name, heights[name]) for name in moments))

    def index(self, layer: str) -> int:
        """Return the position of a norm."""
        return [name for name, _ in self.heights].index(layer)

    def __getitem__(self, layer: str) -> MeanVariance:
        mean, variance = self.values[self.index(layer)]
        return mean, variance


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Past:
    """What answers that predict remember of earlier steps.

    Attributes:
        halos: what the prediction of this device's edges subtracts, by layer: see `Persistence.predict`.
        moments: those of all devices in the step before the last.
        tokens: what the prediction of its keys and values subtracts, by layer.
    """

    halos: dict[str, Edges | None] = dataclasses.field(default_factory=dict)
    moments: Moments | None = None
    tokens: dict[str, KeysValues | None] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carried:
    """The state that the denoising loop carries between the exchanges of two steps, as far as a policy needs it.

    Attributes:
        halos: halos of most layers, by name.
        riders: halos of the first layers, which are sent with the fresh rows of latents.
        moments: moments of all group norms.
        tokens: keys and values, by layer.
        past: what predictions of the next step need besides.
    """

    halos: dict[str, Edges] = dataclasses.field(default_factory=dict)
    riders: dict[str, Edges] = dataclasses.field(default_factory=dict)
    moments: Moments | None = None
    tokens: dict[str, KeysValues] = dataclasses.field(default_factory=dict)
    past: Past = dataclasses.field(default_factory=Past)

    def second_half(self) -> "Carried":
        """Return the pieces of the second half of the pictures: of the second of two guidance branches."""

        def half(axis: int, tree: T) -> T:
            return jax.tree.map(lambda x: lax.slice_in_dim(x, x.shape[axis] // 2, None, axis=axis), tree)

        past = Past(half(0, self.past.halos), half(3, self.past.moments), half(1, self.past.tokens))
        return Carried(half(0, self.halos), half(0, self.riders), half(2, self.moments), half(1, self.tokens), past)


@dataclasses.dataclass(frozen=True)
class Delivered:
    """The other devices' pieces once they have arrived, by layer."""

    halos: dict[str, Edges] = dataclasses.field(default_factory=dict)
    moments: Moments | None = None
    tokens: dict[str, KeysValues] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Persistence:
    """The share of a change that is expected to happen again in the step after it: fp32 scalars.

    Attributes:
        last: of the change to the last step from the one before; 0 if there was none.
        now: of the change from the last step to this one.
        next: of the change from this step to the next.
    """

    last: Array | float = 0.0
    now: Array | float = 0.0
    next: Array | float = 0.0

    def predict(self, own: T, past: T | None) -> tuple[T, T]:
        """Return arrays as they will be in the next step, and what that step's prediction has to subtract."""

        def ahead(x: Array, before: Array) -> Array:
            now = x.astype(jnp.float32)
            return (now + (self.now * now - before.astype(jnp.float32))).astype(x.dtype)

        def kept(x: Array, before: Array) -> Array:
            # XLA computes this in place of `before` only if it depends on it; otherwise a step of SDXL has 220 copies.
            return jnp.where(jnp.asarray(self.next) >= 0, (self.next * x.astype(jnp.float32)).astype(x.dtype), before)

        if past is None:  # the first of all steps
            past = jax.tree.map(jnp.zeros_like, own)
        return jax.tree.map(ahead, own, past), jax.tree.map(kept, own, past)


NOTHING_PERSISTS = Persistence()


def swap_all(halos: dict[str, Edges], transport: Transport) -> dict[str, Edges]:
    """Return the halos of many layers from their edges, with one message to each neighbour.

    A launch costs 10 to 20 µs and a whole step of SDXL on eight GPUs a few milliseconds, so the 39 halos of a step
    must not each be a message.
    """
    if not halos:
        return {}
    tops, as_tops = ravel_pytree({layer: top for layer, (top, _) in halos.items()})
    bottoms, as_bottoms = ravel_pytree({layer: bottom for layer, (_, bottom) in halos.items()})
    above, below = transport.swap((tops, bottoms))
    above_by_layer, below_by_layer = as_bottoms(above), as_tops(below)
    return {layer: (above_by_layer[layer], below_by_layer[layer]) for layer in halos}


def gather_edges(edges: Edges, transport: Transport) -> Edges:
    """Return the rows above and below from one gather, which XLA combines with one of moments.

    Beyond the ends of the picture they are rows from elsewhere. A message of a few rows takes as long as one of none,
    so this one of 2 N edges arrives before two of one edge each.
    """
    top, bottom = edges
    index, count = transport.index(), transport.count()
    every = transport.gather(jnp.concatenate([top, bottom], 1)[None])  # [N, B, n, W, C]
    above, below = (lax.dynamic_index_in_dim(every, (index + i) % count, keepdims=False) for i in (-1, 1))
    return above[:, top.shape[1] :], below[:, : top.shape[1]]


def deal_edges(edges: Edges, transport: Transport) -> Edges:
    """Return what `Transport.swap` does, in one message: each device gets a row from all others, mostly zeros.

    XLA would combine a gather with those of carried keys and values, and the rows would wait for 28 MB.
    """
    top, bottom = edges
    index, count = transport.index(), transport.count()
    most = max(top.shape[1], bottom.shape[1])
    first, last = (jnp.pad(x, ((0, 0), (0, most - x.shape[1]), (0, 0), (0, 0))) for x in edges)
    place = jnp.arange(count)[:, None, None, None, None]
    dealt = transport.deal(jnp.where(place == index + 1, last, jnp.where(place == index - 1, first, 0)))
    above, below = (lax.dynamic_index_in_dim(dealt, (index + i) % count, keepdims=False) for i in (-1, 1))
    above, below = jnp.where(index > 0, above, 0), jnp.where(index < count - 1, below, 0)
    return above[:, : bottom.shape[1]], below[:, : top.shape[1]]


def gather_moments(moments: Moments, transport: Transport) -> Moments:
    """Return the moments of all devices, delivered in one message.

    It is an all-reduce in which each device fills its own slot. XLA would combine an all-gather of these 24 kB with
    that of the first keys and values, and the first group norm would wait for 28 MB.
    """
    place = (jnp.arange(transport.count()) == transport.index())[:, None, None]  # [N, 1, 1]
    values = transport.sum(jnp.where(place, moments.values[:, :, None], 0))
    return dataclasses.replace(moments, values=values)


def gather_tokens(tokens: dict[str, KeysValues], transport: Transport) -> dict[str, KeysValues]:
    """Return all devices' keys and values, one message each: packing copies 0.9 GB per step of SDXL at 1024x1024."""
    return {layer: (transport.gather(k), transport.gather(v)) for layer, (k, v) in tokens.items()}

"""Answers to self-attention: the attention of a slab's tokens over those of the whole picture."""

import dataclasses
from collections.abc import Callable

import jax
from jax import Array, lax

from distrijax.nn.attention import attend
from distrijax.nn.exchange import Projection, tokens
from distrijax.parallel.answers.heads import Deal
from distrijax.parallel.messages import KeysValues, Persistence, gather_tokens
from distrijax.parallel.slab import Slab
from distrijax.parallel.transport import Transport

Tokens = dict[str, KeysValues]
Offer = Callable[[KeysValues], KeysValues]


@dataclasses.dataclass(frozen=True)
class AttentionAnswer:
    """The base class of answers; by default they carry nothing, send nothing and wait for nothing."""

    carries = sends = waits = predicts = False

    def receives(self, own: int, heads: int, devices: int) -> tuple[int, float]:
        """Return the messages of one layer, and the bytes that each of these devices receives.

        XLA gathers keys and values with one message, up to 30 MB.

        Args:
            own: bytes of one device's keys.
            heads: of all pictures of the batch.
        """
        return 1, 2 * (devices - 1) * own

    def message(
        self, own: KeysValues, past: KeysValues | None, persistence: Persistence
    ) -> tuple[KeysValues, KeysValues | None]:
        """Return the keys and values to send for one layer, and what to remember for the message of the next step.

        Args:
            own: those of this device in this step.
            past: what the last step remembered.
        """
        return own, None

    def keep(self, own: Tokens, delivered: Tokens, transport: Transport) -> Tokens:
        """Return what the next step needs from this step's messages `own` and those `delivered` in it."""
        return {}

    def deliver(self, carried: Tokens, transport: Transport) -> Tokens:
        """Return every device's keys and values, by layer, from what the previous step kept."""
        return {}

    def attend(
        self, x: Array, project: Projection, heads: int, offer: Offer, delivered: KeysValues | None, slab: Slab
    ) -> Array:
        """Return one layer's attention, [h, W, B, C].

        Args:
            offer: takes this device's keys and values [h * W, B, C] as soon as they are known, and returns them.
        """
        raise NotImplementedError


class OwnAttention(AttentionAnswer):
    """Attention over the device's own slab alone."""

    def attend(
        self, x: Array, project: Projection, heads: int, offer: Offer, delivered: KeysValues | None, slab: Slab
    ) -> Array:
        q, k, v = project(x)
        own = offer((tokens(k), tokens(v)))
        return attend(q, *own, heads)


class FreshAttention(AttentionAnswer):
    """Attention over every device's keys and values of this step, for which it waits."""

    sends = waits = True

    def receives(self, own: int, heads: int, devices: int) -> tuple[int, float]:
        deal = Deal.of(own, heads, devices)
        return (2, deal.received) if deal.pays else super().receives(own, heads, devices)

    def attend(
        self, x: Array, project: Projection, heads: int, offer: Offer, delivered: KeysValues | None, slab: Slab
    ) -> Array:
        q, k, v = project(x)
        own = offer((tokens(k), tokens(v)))
        if (deal := Deal.of(q.size * q.dtype.itemsize, q.shape[-2] * heads, slab.transport.count())).pays:
            return deal.attend(q, *own, slab)
        with jax.named_scope("tokens"):
            keys, values = (slab.existing_tokens(slab.transport.gather(fresh), k) for fresh in own)
        return attend(q, keys, values, heads)


class StaleAttention(AttentionAnswer):
    """Attention over the others' keys and values of the previous step and the device's own of this step."""

    carries = sends = True

    def keep(self, own: Tokens, delivered: Tokens, transport: Transport) -> Tokens:
        return own

    def deliver(self, carried: Tokens, transport: Transport) -> Tokens:
        return gather_tokens(carried, transport)

    def attend(
        self, x: Array, project: Projection, heads: int, offer: Offer, delivered: KeysValues | None, slab: Slab
    ) -> Array:
        assert delivered is not None
        # Barrier: the gather of the old keys and values must end before the new ones overwrite them, or XLA copies.
        x, delivered = lax.optimization_barrier((x, delivered))
        q, k, v = project(x)
        own = offer((tokens(k), tokens(v)))
        start = slab.transport.index() * own[0].shape[0]
        keys, values = (
            slab.existing_tokens(lax.dynamic_update_slice_in_dim(stale, fresh, start, 0), k)
            for stale, fresh in zip(delivered, own, strict=True)
        )
        return attend(q, keys, values, heads)


class PredictedAttention(StaleAttention):
    """Attention over the keys and values that the others expected for this step, by the last change of theirs."""

    predicts = True

    def message(
        self, own: KeysValues, past: KeysValues | None, persistence: Persistence
    ) -> tuple[KeysValues, KeysValues | None]:
        return persistence.predict(own, past)


class FrozenAttention(StaleAttention):
    """Stale attention over the others' keys and values of the last synchronous step; nothing is sent after it."""

    sends = False

    def keep(self, own: Tokens, delivered: Tokens, transport: Transport) -> Tokens:
        return delivered or gather_tokens(own, transport)

    def deliver(self, carried: Tokens, transport: Transport) -> Tokens:
        return carried

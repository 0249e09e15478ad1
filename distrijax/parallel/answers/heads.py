"""Exact self-attention for which each device takes some heads of the whole picture."""

import dataclasses
from math import gcd

import jax
import jax.numpy as jnp
from jax import Array

from distrijax.nn.attention import attend
from distrijax.nn.exchange import tokens
from distrijax.parallel.slab import Slab

_SECOND_WAIT = 13e6
"""Bytes that must be saved for a second message to pay: what NVLink carries while it and five kernels start, 40 µs."""

_REARRANGING = 2
"""Times a device's own keys that NVLink carries while the device rearranges what it sends and receives: 52 µs for 9 MB
(estimated for an H100)."""


@dataclasses.dataclass(frozen=True)
class Deal:
    """How N devices share the attention of one layer: each takes a group of heads, and a part of the queries.

    With all keys and values gathered, a device receives its own 2 (N - 1) times. Here it receives those of its heads,
    its part of the queries and, in a second message, the results of its own tokens: 3.5 times as much as its own keys
    if 8 devices take 5 heads of 40 each, where a gather takes 14. If no more than half of the devices can have heads of
    their own, two of them divide the queries, and 5.25 times as much is received.

    Attributes:
        devices: all of them.
        groups: of heads.
        heads: in a group, those of all pictures of the batch counted.
        own: bytes of one device's keys.
    """

    devices: int
    groups: int
    heads: int
    own: int

    @classmethod
    def of(cls, own: int, heads: int, devices: int) -> "Deal":
        """Return how devices share the heads of a batch, where each has `own` bytes of keys."""
        groups = gcd(devices, heads)
        return cls(devices, groups, heads // groups, own)

    @property
    def parts(self) -> int:
        """The number of devices that divide the queries of a group of heads."""
        return self.devices // self.groups

    @property
    def received(self) -> float:
        """Bytes that a device receives, but for the padding of queries."""
        return 2 * (self.devices - 1) * self.own * (1 / self.groups + 1 / self.devices)

    @property
    def pays(self) -> bool:
        """Whether it takes less time than a gather of keys and values, by what is received."""
        return 2 * (self.devices - 1) * self.own - self.received - _REARRANGING * self.own > _SECOND_WAIT

    def attend(self, q: Array, k: Array, v: Array, slab: Slab) -> Array:
        """Return the attention of this device's queries, [h, W, B, C], from its keys and values, [t, B, C] each."""
        count, size = len(k), q.shape[-2] * q.shape[-1] // (self.groups * self.heads)
        few = -(-count // self.parts)  # queries of a part

        def by_device(x: Array, parts: int) -> Array:  # [t, B, C] -> [N, t / parts, heads, size]
            x = x.reshape(parts, -1, self.groups, self.heads, size).transpose(2, 0, 1, 3, 4)
            return jnp.broadcast_to(x, (self.groups, self.parts, *x.shape[2:])).reshape(-1, *x.shape[2:])

        with jax.named_scope("tokens"):
            padded = jnp.pad(tokens(q), ((0, self.parts * few - count), (0, 0), (0, 0)))
            pieces = [by_device(padded, self.parts), by_device(k, 1), by_device(v, 1)]
            received = slab.transport.deal(jnp.concatenate(pieces, 1))  # one message for all three
            queries, *whole = jnp.split(received, (few, few + count), 1)
            keys, values = (slab.existing_tokens(x.reshape(-1, *x.shape[2:]), q) for x in whole)
        y = attend(queries.reshape(-1, *queries.shape[2:]), keys, values, 1)
        with jax.named_scope("tokens"):
            y = slab.transport.deal(y.reshape(queries.shape))
            y = y.reshape(self.groups, self.parts, few, self.heads, size).transpose(1, 2, 0, 3, 4)
        return y.reshape(self.parts * few, -1)[:count].reshape(q.shape)

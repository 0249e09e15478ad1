"""The exchange of one step on a device that holds one slab of rows, for use inside `shard_map` or `vmap`."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax

from distrijax.nn.exchange import Fit, Projection, Whole, untouched
from distrijax.parallel.answers.moments import FreshMoments, History
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.messages import (
    NOTHING_PERSISTS,
    Carried,
    Delivered,
    KeysValues,
    Moments,
    Past,
    Persistence,
    Pieces,
    gather_moments,
    swap_all,
)
from distrijax.parallel.policies import Policy
from distrijax.parallel.slab import Slab
from distrijax.parallel.transport import Edges, Transport


class OneDevice(Whole):
    """The exchange of a single device in a denoising loop, with nothing to carry."""

    def carry(self) -> Carried:
        return Carried()


class SlabExchange:
    """The exchange of one step, which answers layers by a policy and keeps what the next step needs.

    Args:
        policy: policy of this step.
        successor: policy of the next step, which decides what this one keeps.
        riders: number of leading layers whose stale halos are sent with the first fresh ones.
        carried: what the previous step kept; ignored by a policy that carries nothing.
        persistence: the share of changes that predictions expect to happen again.
    """

    def __init__(
        self,
        policy: Policy,
        successor: Policy,
        riders: int,
        layout: SlabLayout,
        transport: Transport,
        carried: Carried | None,
        persistence: Persistence = NOTHING_PERSISTS,
    ):
        self.policy, self.successor, self.riders = policy, successor, riders
        self.slab, self.transport = Slab(layout, transport), transport
        self.carried, self.persistence = carried or Carried(), persistence
        self.own, self.past, self.heights = Pieces(), Past(), dict[str, int]()
        with jax.named_scope("halos"):
            halos = policy.halo.deliver(self.carried.halos, transport)
        with jax.named_scope("moments"):
            moments = None
            if (policy.moments.carries or successor.moments.predicts) and self.carried.moments is not None:
                moments = gather_moments(self.carried.moments, transport)
            self.history = self._recall(moments)
        with jax.named_scope("tokens"):
            tokens = policy.attention.deliver(self.carried.tokens, transport)
        self.delivered = Delivered(halos, moments, tokens)
        self.waiting_riders = self.carried.riders if policy.halo.carries else {}

    def _recall(self, every: Moments | None) -> History | None:
        """Return what group norms need of earlier steps, of which `every` are the last one's moments of all devices."""
        own, before, answer = self.carried.moments, self.carried.past.moments, self.policy.moments
        if not answer.carries or own is None or every is None:
            return None
        # After a single synchronous step `last` is 0: there `before` holds zeros, not a step's moments.
        persistence = jnp.minimum(self.persistence.last, self.persistence.now)
        return answer.prepare(History(own, every, before, persistence), self.slab)

    def halo(self, layer: str, x: Array, above: int, below: int, fit: Fit = untouched) -> Array:
        if layer in self.policy.fresh:
            x = self.slab.without_padding(fit(x)(x))
            edges = self.slab.edges(x, above, below)
            rows = self._fresh_rows(layer, edges)
            y = jnp.concatenate([rows[0], x, rows[1]], 1)
        else:
            answer = self.policy.halo_of(layer)
            y, edges = answer.extend(x, above, below, fit, self.delivered.halos.get(layer), self.slab)
        if not self.successor.waits_for_halo(layer):
            message, past = self.successor.halo.message(edges, self.carried.past.halos.get(layer), self.persistence)
            self._keep_once(self.own.halos, layer, message)
            self.past.halos[layer] = past
        return y

    def _fresh_rows(self, layer: str, edges: Edges) -> Edges:
        """Wait for the neighbours' rows of this step; the first layer that does takes the riders along."""
        with jax.named_scope("fresh_halos"):
            if not self.waiting_riders:
                return self.transport.swap(edges)
            halos = swap_all(self.waiting_riders | {layer: edges}, self.transport)
        self.waiting_riders = {}
        rows = halos.pop(layer)
        self.delivered.halos.update(halos)
        return rows

    def moments(self, layer: str, x: Array, groups: int) -> tuple[Array, Array]:
        own = self.slab.own_moments(x, groups)
        with jax.named_scope("moments"):
            if layer in self.policy.fresh:
                return FreshMoments().merge(own, layer, None, x.shape[1], self.slab)
            self._keep_once(self.own.moments, layer, own)
            self.heights[layer] = x.shape[1]
            return self.policy.moments.merge(own, layer, self.history, x.shape[1], self.slab)

    def attention(self, layer: str, x: Array, project: Projection, heads: int) -> Array:
        def offer(own: KeysValues) -> KeysValues:
            answer = self.successor.attention
            message, past = answer.message(own, self.carried.past.tokens.get(layer), self.persistence)
            if answer.carries:
                # Barrier: store what the next step needs now; otherwise XLA keeps 480 MB of products to the step's end.
                own, message, past = lax.optimization_barrier((own, message, past))
            self._keep_once(self.own.tokens, layer, message)
            self.past.tokens[layer] = past
            return own

        return self.policy.attention.attend(x, project, heads, offer, self.delivered.tokens.get(layer), self.slab)

    def carry(self) -> Carried:
        """Return what the next step's exchange needs from this one."""
        policy, riders = self.successor, {}
        with jax.named_scope("halos"):
            halos = policy.halo.keep(self.own.halos, self.delivered.halos, self.transport)
        if policy.halo.sends and policy.halo.carries:
            first = list(halos)[: self.riders]
            riders, halos = {k: halos[k] for k in first}, {k: v for k, v in halos.items() if k not in first}
        moments = Moments.stack(self.own.moments, self.heights) if policy.moments.carries else None
        with jax.named_scope("tokens"):
            tokens = policy.attention.keep(self.own.tokens, self.delivered.tokens, self.transport)
        before = self._moments_before(moments) if policy.moments.predicts else None
        return Carried(halos, riders, moments, tokens, Past(self.past.halos, before, self.past.tokens))

    def _moments_before(self, moments: Moments | None) -> Moments | None:
        """Return what the next step needs of all devices' moments of the step before this one: zeros at first."""
        if moments is None:
            return None
        nothing = jnp.zeros_like(moments.values[:, :, None])  # makes what all devices know this device's own, for JAX
        delivered = self.delivered.moments
        known = jnp.repeat(nothing, self.transport.count(), 2) if delivered is None else delivered.values + nothing
        return dataclasses.replace(moments, values=known)

    def _keep_once(self, kind: dict, layer: str, piece: object) -> None:
        if layer in kind:
            raise ValueError(f"layer {layer!r} asked twice in one step; name the layers of a model with name_layers")
        kind[layer] = piece

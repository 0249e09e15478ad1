"""The exchange of one step on a device that holds one slab of rows, for use inside `shard_map` or `vmap`."""

import jax
import jax.numpy as jnp
from jax import Array

from distrijax.nn.exchange import Fit, Projection, Whole, untouched
from distrijax.parallel.answers.moments import FreshMoments
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.messages import Carried, Delivered, Moments, Pieces, gather_moments, swap_all
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
    """

    def __init__(
        self,
        policy: Policy,
        successor: Policy,
        riders: int,
        layout: SlabLayout,
        transport: Transport,
        carried: Carried | None,
    ):
        self.policy, self.successor, self.riders = policy, successor, riders
        self.slab, self.transport = Slab(layout, transport), transport
        self.carried, self.own = carried or Carried(), Pieces()
        with jax.named_scope("halos"):
            halos = policy.halo.deliver(self.carried.halos, transport)
        with jax.named_scope("moments"):
            moments = None
            if policy.moments.carries and self.carried.moments is not None:
                moments = gather_moments(self.carried.moments, transport)
        with jax.named_scope("tokens"):
            tokens = policy.attention.deliver(self.carried.tokens, transport)
        self.delivered = Delivered(halos, moments, tokens)
        self.waiting_riders = self.carried.riders if policy.halo.carries else {}

    def halo(self, layer: str, x: Array, above: int, below: int, fit: Fit = untouched) -> Array:
        if layer in self.policy.fresh:
            x = self.slab.without_padding(fit(x)(x))
            rows = self._fresh_rows(layer, self.slab.edges(x, above, below))
            return jnp.concatenate([rows[0], x, rows[1]], 1)
        y, own = self.policy.halo.extend(x, above, below, fit, self.delivered.halos.get(layer), self.slab)
        self._keep_once(self.own.halos, layer, own)
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
                return FreshMoments().merge(own, None, None, x.shape[1], self.slab)
            self._keep_once(self.own.moments, layer, own)
            last = delivered = None
            if self.delivered.moments is not None and self.carried.moments is not None:
                last, delivered = self.carried.moments[layer], self.delivered.moments[layer]
            return self.policy.moments.merge(own, last, delivered, x.shape[1], self.slab)

    def attention(self, layer: str, x: Array, project: Projection, heads: int) -> Array:
        answer = self.policy.attention
        y, own = answer.attend(x, project, heads, self.delivered.tokens.get(layer), self.slab)
        self._keep_once(self.own.tokens, layer, own)
        return y

    def carry(self) -> Carried:
        """Return what the next step's exchange needs from this one."""
        policy, riders = self.successor, {}
        with jax.named_scope("halos"):
            halos = policy.halo.keep(self.own.halos, self.delivered.halos, self.transport)
        if policy.halo.sends and policy.halo.carries:
            first = list(halos)[: self.riders]
            riders, halos = {k: halos[k] for k in first}, {k: v for k, v in halos.items() if k not in first}
        moments = Moments.stack(self.own.moments) if policy.moments.carries else None
        with jax.named_scope("tokens"):
            tokens = policy.attention.keep(self.own.tokens, self.delivered.tokens, self.transport)
        return Carried(halos, riders, moments, tokens)

    def _keep_once(self, kind: dict, layer: str, piece: object) -> None:
        if layer in kind:
            raise ValueError(f"layer {layer!r} asked twice in one step; name the layers of a model with name_layers")
        kind[layer] = piece

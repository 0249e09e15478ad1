"""Phases and answers: which steps are synchronous, and what each answer sends, waits for and carries."""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from test_slabs import normal, on_each, slabs

from distrijax.models.unet import INPUT_LAYER
from distrijax.nn.exchange import WHOLE
from distrijax.parallel.answers.attention import AttentionAnswer, OwnAttention
from distrijax.parallel.answers.halos import HaloAnswer, StaleHalos, ZeroHalos
from distrijax.parallel.answers.moments import MomentsAnswer, OwnMoments
from distrijax.parallel.exchange import SlabExchange
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.messages import Carried
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import FULL_SYNC, MODES, TENSOR, Policy
from distrijax.parallel.transport import MESH, LocalCopies

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("mode", [*MODES, TENSOR])
def test_phases(mode: str) -> None:
    for steps, warmup, patch in product((1, 2, 5, 50), (0, 1, 4, 60), (1, 2)):
        parallel = Parallel(patch=patch, mode=mode, warmup_steps=warmup, emulate=mode != TENSOR)
        phases = parallel.phases(steps)
        assert sum(count for count, _ in phases) == steps
        assert all(count for count, _ in phases)
        displaced = max(0, steps - 1 - warmup) if patch > 1 and mode not in ("full_sync", "naive_patch", TENSOR) else 0
        synchronous = [(steps - displaced, "synchronous")] if steps > displaced else []
        assert [(n, p.name) for n, p in phases] == synchronous + [(displaced, "displaced")] * (displaced > 0)
        policy = FULL_SYNC if patch == 1 else MODES.get(mode, FULL_SYNC)
        assert all(phase.successor is policy for _, phase in phases)
        # A step that follows nothing must not need what a step before it made.
        assert not phases[0][1].policy.carries
        assert phases[-1][1].policy is (policy if displaced or not policy.carries else FULL_SYNC)


class Recorder(LocalCopies):
    """Counts its messages."""

    def __init__(self, devices: int):
        super().__init__(devices)
        object.__setattr__(self, "sizes", [])

    def swap(self, edges: Any) -> Any:
        self.sizes.append(edges[0].size)
        return super().swap(edges)

    def gather(self, x: Array) -> Array:
        self.sizes.append(x.size)
        return super().gather(x)

    def deal(self, x: Array) -> Array:
        self.sizes.append(x.size)
        return super().deal(x)

    def sum(self, x: Array) -> Array:
        self.sizes.append(x.size)
        return super().sum(x)


ALONE = {"halo": ZeroHalos(), "attention": OwnAttention(), "moments": OwnMoments()}
LAYOUT = SlabLayout(12, 3)


def ask(exchange: SlabExchange, x: Array) -> None:
    """Ask every question once, as a model does."""
    exchange.halo("conv", x, 1, 1)
    exchange.moments("norm", x, 2)
    exchange.attention("attn", x.transpose(1, 2, 0, 3), lambda x: (x, x, x), 1)


def subclasses(kind: type) -> list[type]:
    return [below for direct in kind.__subclasses__() for below in (direct, *subclasses(direct))]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        pytest.param(name, kind(), id=kind.__name__)
        for name, base in (("halo", HaloAnswer), ("attention", AttentionAnswer), ("moments", MomentsAnswer))
        for kind in subclasses(base)
    ],
)
def test_answers_do_what_they_state(question: str, answer: Any) -> None:
    """A step after a synchronous one: what it sends before the first layer asks, while layers ask, and carries on."""
    policy, transport = Policy(**(ALONE | {question: answer}), fresh=frozenset()), Recorder(3)
    x = jnp.asarray(normal(1, 4, 4, 4))
    first = SlabExchange(FULL_SYNC, policy, 0, LAYOUT, transport, None)
    ask(first, x)
    carried = first.carry()
    del transport.sizes[:]
    step = SlabExchange(policy, policy, 0, LAYOUT, transport, carried)
    sent_first = len(transport.sizes)
    ask(step, x)
    waited = len(transport.sizes) - sent_first
    assert bool(jax.tree.leaves(step.carry())) == bool(jax.tree.leaves(carried)) == answer.carries == policy.carries
    assert bool(sent_first + waited) == answer.sends
    assert bool(waited) == answer.waits
    assert len(transport.sizes) == sent_first + waited, "the end of the step sends, too"


def test_riders_travel_with_the_first_fresh_rows() -> None:
    """In any case every layer gets the rows of the step before; the fresh one those of this step."""
    policy = Policy(StaleHalos(), OwnAttention(), OwnMoments())
    before, now = normal(1, 12, 4, 2), normal(1, 12, 4, 2, seed=1)

    def step(riders: int, carried: Carried | None, x: Array, transport: Any) -> tuple[Carried, list[Array]]:
        exchange = SlabExchange(policy if carried else FULL_SYNC, policy, riders, LAYOUT, transport, carried)
        rows = [exchange.halo(layer, x, 1, 1) for layer in (INPUT_LAYER, "a", "b", "c")]
        return exchange.carry(), rows

    def both(riders: int, before: Array, now: Array) -> list[Array]:
        return step(riders, step(riders, None, before, MESH)[0], now, MESH)[1]

    for riders in range(4):
        fresh, *stale = on_each(lambda *x: both(riders, *x), slabs(LAYOUT, before), slabs(LAYOUT, now))  # noqa: B023
        for rows, source in ((fresh, now), *((rows, before) for rows in stale)):
            around = np.pad(source, ((0, 0), (1, 1), (0, 0), (0, 0)))
            expected = np.stack([around[:, 4 * i : 4 * i + 6] for i in range(3)])
            expected[:, :, 1:-1] = slabs(LAYOUT, now)  # a device's own rows are always those of this step
            np.testing.assert_array_equal(rows, expected)
        transport, x = Recorder(3), jnp.ones((1, 4, 4, 2))
        carried, _ = step(riders, None, x, transport)
        del transport.sizes[:]
        step(riders, carried, x, transport)
        ahead = [] if riders == 3 else [8 * (3 - riders)]  # one message for all that do not ride
        assert transport.sizes == [*ahead, 8 * (1 + riders)]


def test_a_layer_asks_once_a_step() -> None:
    exchange = SlabExchange(FULL_SYNC, MODES["stale_gn"], 0, LAYOUT, LocalCopies(3), None)
    x = jnp.ones((1, 4, 4, 2))
    exchange.own.halos["conv"] = (x[:, :1], x[:, :1])
    with pytest.raises(ValueError, match="'conv' asked twice"):
        exchange.halo("conv", x, 1, 1)


def test_one_device_asks_nobody() -> None:
    x = jnp.asarray(normal(1, 4, 4, 4))
    exchange = Parallel().phases(1)[0][1].exchange(SlabLayout(4, 1))(None)
    np.testing.assert_array_equal(exchange.halo("conv", x, 1, 2), WHOLE.halo("conv", x, 1, 2))
    np.testing.assert_array_equal(exchange.moments("norm", x, 2), WHOLE.moments("norm", x, 2))
    assert not jax.tree.leaves(exchange.carry())

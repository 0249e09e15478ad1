"""In a displaced step nothing waits for the network: seen in the traced program, whatever a compiler makes of it.

The body of the denoising loop is walked, layer by layer, with the one question what each collective depends on. What
depends on no convolution and no matrix product of the same step can be sent before the first of them.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from math import prod
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from parallel_helpers import GUIDANCE, inputs, small_unet

from distrijax import Parallel
from distrijax.nn.conv import Conv
from distrijax.nn.norm import GroupNorm
from distrijax.nn.transformer import SelfAttention
from distrijax.parallel.messages import Carried
from distrijax.parallel.phases import RIDERS
from distrijax.parallel.policies import MODES, Policy
from distrijax.sampling import programs

DISPLACED = [mode for mode, policy in MODES.items() if policy.carries]
PATCHES, HEIGHT, WIDTH = 4, 30, 9  # rows and columns of latents: 8 rows a device, the last has 6
HEAVY = {"conv_general_dilated", "dot_general"}
COLLECTIVES = (
    "ppermute",
    "all_gather",
    "all_to_all",
    "psum",
    "pmax",
    "pmin",
    "reduce_scatter",
    "pgather",
    "pbroadcast",
)
RESCALED = dataclasses.replace(GUIDANCE, rescale=np.float32(0.7))


@dataclasses.dataclass(frozen=True)
class Collective:
    kind: str
    axes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    waits: bool  # for a convolution or a matrix product of the same step
    perm: tuple[tuple[int, int], ...] | None  # of a ppermute


def parts(eqn: Any) -> list[Any]:
    """The jaxprs inside `eqn`, such as a called function or a loop's body."""
    found = []
    for value in eqn.params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(x, "jaxpr", x)  # of a ClosedJaxpr
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found


def walk(jaxpr: Any, waiting: list[bool], found: list[Collective]) -> list[bool]:
    """Which results of `jaxpr` depend on a heavy operation, given which arguments do. Adds its collectives to `found`.

    What a loop or a call has inside is walked with what is known of its arguments; a loop until nothing changes.
    """
    known = dict(zip(jaxpr.invars, waiting, strict=True))

    def waits(x: Any) -> bool:
        return not hasattr(x, "val") and known.get(x, False)  # literals have a `val`

    for eqn in jaxpr.eqns:
        given, name = [waits(x) for x in eqn.invars], eqn.primitive.name
        inside = parts(eqn)
        if inside:
            assert len(inside) == 1, f"{name} has {len(inside)} branches: this walk knows calls and scans"
            assert len(inside[0].invars) == len(given), name
            results = walk(inside[0], given, own := [])
            if name == "scan":
                consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
                for _ in range(carried + 1):
                    for i, result in enumerate(results[:carried]):
                        given[consts + i] |= result
                    results = walk(inside[0], given, own := [])
            found += own
        else:
            results = [name in HEAVY or any(given)] * len(eqn.outvars)
            if name.startswith(COLLECTIVES):
                axes = eqn.params.get("axis_name", eqn.params.get("axes"))
                axes = tuple(axes) if isinstance(axes, tuple | list) else (axes,)
                shapes = tuple(x.aval.shape for x in eqn.invars)
                found.append(Collective(name, axes, shapes, any(given), eqn.params.get("perm")))
        known.update(zip(eqn.outvars, results, strict=True))
    return [waits(x) for x in jaxpr.outvars]


def loops(jaxpr: Any) -> Iterator[Any]:
    """The outermost loops of a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "while":
            yield eqn
        else:
            for inner in parts(eqn):
                yield from loops(inner)


@cache
def traced(mode: str, displaced: bool, rescaled: bool = False) -> tuple[list[Collective], Carried]:
    """The collectives of a step in order, and what is carried from it to the next, of all devices."""
    parallel = Parallel(cfg=2, patch=PATCHES, mode=mode, warmup_steps=0)
    unet, guidance = small_unet(), RESCALED if rescaled else GUIDANCE
    now, choices = inputs(unet, parallel, (HEIGHT, WIDTH), steps=3, guidance=guidance)
    now = now.with_steps(0, 3, parallel)
    (_, warm_up), *rest = parallel.phases(3)
    phase = rest[0][1] if displaced else warm_up
    if displaced:
        carry = jax.eval_shape(partial(programs.denoise, **choices, phase=warm_up), *now)[0]
        now = now._replace(carry=carry)
    program = jax.make_jaxpr(partial(programs.denoise, **choices, phase=phase), return_shape=True)
    jaxpr, (after, _, _) = program(*now)
    (loop,) = loops(jaxpr.jaxpr)
    body, found = loop.params["body_jaxpr"].jaxpr, list[Collective]()
    walk(body, [False] * len(body.invars), found)
    return found, after.pieces


def layers(kind: type) -> int:
    return sum(isinstance(layer, kind) for _, layer in nnx.iter_modules(small_unet()))


def kinds(collectives: list[Collective]) -> Counter[str]:
    return Counter(c.kind.removesuffix("_invariant") for c in collectives)


def shapes(collectives: list[Collective], kind: str) -> Counter[tuple[int, ...]]:
    return Counter(shape for c in collectives if c.kind.startswith(kind) for shape in c.shapes)


def fresh_halos(policy: Policy) -> int:
    """The number of convolutions that wait for this step's halos, besides conv_in."""
    convolutions = [module.path for _, module in nnx.iter_modules(small_unet()) if isinstance(module, Conv)]
    assert len(convolutions) == layers(Conv)
    return sum(policy.halo.waits or policy.waits_for_halo(path) for path in convolutions) - 1


@pytest.mark.parametrize("rescaled", [False, True], ids=["", "guidance rescaled"])
@pytest.mark.parametrize("mode", DISPLACED)
def test_a_displaced_step_waits_for_nothing_bulky(mode: str, rescaled: bool) -> None:
    found, _ = traced(mode, True, rescaled)
    waiting = [c for c in found if c.waits]
    policy = MODES[mode]
    # The sum over guidance branches, two moments of the prediction if it is rescaled, and what the answers wait for.
    expected = {
        "psum": 1 + rescaled,
        "all_gather": 2 * rescaled + policy.moments.waits * layers(GroupNorm),
        "all_to_all": fresh_halos(policy),
    }
    assert not policy.attention.waits
    assert kinds(waiting) == Counter({kind: count for kind, count in expected.items() if count})
    groups = small_unet().config.norm_num_groups
    assert set(shapes(waiting, "all_gather")) <= {(1, 2, 1, 1), (1, 2, 1, groups)}, "more than moments"


@pytest.mark.parametrize("mode", ["full_sync", *DISPLACED])
def test_a_synchronous_step_waits(mode: str) -> None:
    """All but conv_in's rows, which depend on the latents alone: the walk above can fail."""
    found, _ = traced(mode, False)
    again = (1, 2) if mode == "no_sync" else (0, 0)  # what its displaced steps will use is gathered a second time
    waiting = kinds([c for c in found if c.waits])
    assert waiting["ppermute"] == 2 * again[0]
    assert waiting["all_gather"] == layers(GroupNorm) + layers(Conv) - 1 + layers(SelfAttention) * (2 + again[1])


@pytest.mark.parametrize("mode", DISPLACED)
def test_a_displaced_step_sends_little_and_seldom(mode: str) -> None:
    found, pieces = traced(mode, True)
    count = kinds(found)
    rows = (1, 1, WIDTH, 4)  # [B, 1, W, C]: conv_in's, of the latents of this step
    policy = MODES[mode]
    if mode == "no_sync":
        assert shapes(found, "ppermute") == Counter({rows: 2})
        assert count == Counter(ppermute=2, psum=1)
        return
    # One message up and one down with all halos, which are packed; those of the first layers go with conv_in's rows.
    if policy.halo.carries:
        halos, riders = (sum(prod(top.shape[1:]) for top, _ in x.values()) for x in (pieces.halos, pieces.riders))
        stale = layers(Conv) - 1 - fresh_halos(policy)
        assert (len(pieces.riders), len(pieces.halos)) == (RIDERS, stale - RIDERS)
        permuted = shapes(found, "ppermute")
        assert permuted[halos,] == permuted[prod(rows) + riders,] == 2
    # Keys and values of each layer as they are carried, and all moments in one message; no latents, no prediction.
    tokens = Counter(x.shape[1:] for pair in pieces.tokens.values() for x in pair)
    assert tokens.total() == 2 * layers(SelfAttention)
    if policy.moments.carries:
        _, norms, *moments = pieces.moments.values.shape  # [., L, 2, B, G]
        assert norms == len(pieces.moments.heights) == layers(GroupNorm)
        assert shapes(found, "psum")[norms, moments[0], PATCHES, *moments[1:]] == 1
    if policy.moments.waits:
        tokens[1, 2, 1, small_unet().config.norm_num_groups] = layers(GroupNorm)
    assert shapes(found, "all_gather") == tokens
    halos = Counter(ppermute=2 + 2 * policy.halo.carries, all_to_all=fresh_halos(policy))
    assert count == Counter({k: n for k, n in halos.items() if n}) + Counter(
        all_gather=tokens.total(), psum=1 + policy.moments.carries
    )


@pytest.mark.parametrize("displaced", [False, True], ids=["synchronous", "displaced"])
@pytest.mark.parametrize("mode", DISPLACED)
def test_rows_go_to_neighbours_and_guidance_alone_between_branches(mode: str, displaced: bool) -> None:
    for c in traced(mode, displaced)[0]:
        if c.axes == ("cfg",):  # over the branches: this device's rows of the prediction, [B, h, W, C]
            assert c.kind.startswith("psum")
            assert c.shapes == ((1, 8, WIDTH, 4),)
        else:
            assert c.axes == ("patch",)
        for source, target in c.perm or ():
            assert (target - source) % PATCHES in (1, PATCHES - 1), c

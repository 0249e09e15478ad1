"""`distrijax bench`: a share computes what one device of N computes; runs are counted, taken in turn, and reported."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parallel_helpers import UNET, relative

from distrijax import Parallel
from distrijax.checkpoint import Checkpoint, Component, find
from distrijax.cli import main
from distrijax.models.unet import UNet
from distrijax.nn.conv import Conv
from distrijax.nn.exchange import WHOLE
from distrijax.nn.norm import GroupNorm
from distrijax.nn.transformer import SelfAttention
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.phases import SYNCHRONOUS
from distrijax.runtime.compile import Program
from distrijax.tools import loop
from distrijax.tools.bench import measure, steps, weights
from distrijax.tools.bench.steps import CopiedInPlace, share_call, share_layout
from distrijax.tools.bench.timing import Measurement, RunSettings, TimedFunction, take_turns
from distrijax.tools.workload import Workload

TINY = UNET | {"projection_class_embeddings_input_dim": 8 + 6 * 4}


@pytest.fixture(scope="module")
def case() -> Workload:
    demo = find("demo")
    tiny = Component.from_json("unet", TINY, "test")
    vae = Component.from_json("vae", demo.components["vae"].json, "test")
    scale = demo.vae.scale_factor
    model = Checkpoint("tiny", {"unet": tiny, "vae": vae}, {}, {}, {})
    return Workload(model, height=32 * scale, width=16 * scale, dtype="float32")


@pytest.fixture(scope="module")
def unet(case: Workload) -> UNet:
    return weights.unet(case.model, case.dtype, Parallel())


def equations(program: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Of a traced program and those inside it, and how often each runs."""
    for equation in program.eqns:
        yield equation, times
        inside = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner, inside)


def operations(jaxpr: Any) -> int:
    """Multiplications of its products and convolutions."""
    total = 0
    for equation, times in equations(jaxpr):
        out = prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += times * out * prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            weights = prod(equation.invars[1].aval.shape)
            total += times * out * weights // equation.outvars[0].aval.shape[-1]
    return total


def multiplications(call: loop.LoopCall, layout: Parallel) -> list[int]:
    """Of the program of each phase of `layout`."""
    counts = []
    for phase in loop.phases(layout):
        jaxpr, after = loop.trace(call, phase)
        counts.append(operations(jaxpr))
        call = after
    return counts


@pytest.mark.parametrize(("devices", "cfg"), [(2, 1), (4, 1), (2, 2), (4, 2)])
def test_a_share_is_an_nth_of_the_arithmetic(case: Workload, unet: UNet, devices: int, cfg: int) -> None:
    alone, layout = share_layout(case, 1), share_layout(case, devices, cfg=cfg)
    (whole,) = multiplications(share_call(case, unet, alone), alone)
    counts = multiplications(share_call(case, unet, layout), layout)
    assert len(counts) == (1 if devices == cfg else 2)
    for own in counts:
        # What depends on no row, such as the time embedding, every device computes.
        assert 1 / devices <= own / whole < 1 / devices + 0.01


def test_a_share_has_the_shapes_of_one_device(case: Workload, unet: UNet) -> None:
    """Of N virtual devices, each with its own place along the first axis of the pieces."""
    parallel = Parallel(patch=4, emulate=True)
    synchronous, _ = loop.phases(parallel)
    calls = steps.random_call(case, unet, parallel), share_call(case, unet, share_layout(case, 4))
    pieces = [loop.trace(call, synchronous)[1].inputs.carry.pieces for call in calls]
    theirs, own = map(jax.tree.leaves, pieces)
    assert [(1, *x.shape[1:]) for x in theirs] == [x.shape for x in own]
    assert all(x.shape[0] == 4 for x in theirs)


def test_steps_run_as_often_as_wanted(case: Workload, unet: UNet) -> None:
    """The carry is donated to every run, and a displaced step starts from what a synchronous one left."""
    functions = steps.mesh_steps(case, unet, Parallel(patch=2, emulate=True))
    assert set(functions) == {"synchronous", "displaced"}
    for function in functions.values():
        first, again = (function.prepare()()[0].latents for _ in range(2))
        assert function.repeats == 2
        assert np.isfinite(first).all()
        assert np.array_equal(first, again)


def test_layers_of_a_share_equal_those_of_a_device_whose_neighbours_hold_the_same() -> None:
    """By hand: a picture of three equal slabs, of which the middle one is looked at."""
    own = jnp.asarray(np.random.RandomState(0).randn(2, 4, 6, 8), jnp.float32)
    whole = jnp.concatenate([own] * 3, 1)
    exchange = SYNCHRONOUS.exchange(SlabLayout(12, 3), CopiedInPlace(3))(None)
    conv = Conv(8, 8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm = GroupNorm(8, 4, eps=1e-5, dtype=jnp.float32)
    attention = SelfAttention(8, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    conv.path, norm.path, attention.path = "conv", "norm", "attention"
    neutral = WHOLE
    assert relative(conv(own, exchange), conv(whole, neutral)[:, 4:8]) < 1e-6
    assert relative(norm(own, exchange), norm(whole, neutral)[:, 4:8]) < 1e-6
    tokens, all_tokens = (x.transpose(1, 2, 0, 3) for x in (own, whole))
    assert relative(attention(tokens, exchange), attention(all_tokens, neutral)[4:8]) < 1e-6
    assert CopiedInPlace(3).gather(tokens).shape == (3 * 4, 6, 2, 8)  # all are there, not one for three


def test_turns_are_taken_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []

    def function(name: str) -> TimedFunction:
        def prepare() -> Callable[[], None]:
            order.append(f"prepare {name}")
            return lambda: order.append(f"run {name}")

        return TimedFunction(prepare, repeats=2)

    lines = take_turns({name: function(name) for name in ("a", "b")}, RunSettings(runs=2, warm_up=1))
    assert order == ["prepare a", "run a", "prepare b", "run b"] * 3
    assert [(line.name, len(line.seconds)) for line in lines] == [("a", 2), ("b", 2)]
    assert Measurement("a", (3.0, 1.0, 2.5)).median == 2.5


def test_a_run_is_waited_for_and_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append((x, next(clock))))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock, 18.0))
    (line,) = take_turns({"one": TimedFunction(lambda: lambda: "result", 2)}, RunSettings(runs=1, warm_up=0))
    assert waited == [("result", 14.0)]
    assert line.seconds == (4.0,)


SMALL = "--model demo --height 256 --width 256 --quiet"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    functions = dict.fromkeys(("synchronous", "displaced"), TimedFunction(lambda: lambda: None, compile_seconds=1.0))
    monkeypatch.setattr(steps, "share_steps", lambda *_: functions)
    monkeypatch.setattr(weights, "unet", lambda *_: None)
    written = tmp_path / "share.json"
    command = f"bench {SMALL} --runs 2 --share 1,2 --json {written}"
    assert main(command.split()) == 0
    assert "2  displaced" in capsys.readouterr().out
    (report,) = json.loads(written.read_text())
    assert {"device", "cpu", "versions"} <= set(report["machine"])
    assert report["settings"]["dtype"] == "float32"
    assert (report["settings"]["height"], report["settings"]["random_weights"]) == (256, False)
    lines = report["measurements"]
    assert [(line["devices"], len(line["seconds"])) for line in lines] == [(1, 2), (1, 2), (2, 2), (2, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model nothing", "it must be sdxl-base"),
        ("--height 100", "it must be a multiple of 8"),
        ("--runs 0", "1 or more"),
        ("--share 3 --cfg 2", "multiple of --cfg 2"),
        ("--share 64 --height 256", "choose --patch "),
        ("--share 2 --patch 2", "measured on one device"),
        ("--share 4,2", "increasing order"),
        ("--share two", "a list of numbers"),
        ("--json nowhere/at/all.json", "no folder"),
        ("--patch 2 --mode tensor", "tensor"),
        ("--only step --cfg 2 --no-guidance --emulate", "no second guidance branch"),
    ],
)
def test_mistakes_are_refused_before_any_work(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("weights were made")

    monkeypatch.setattr(weights, "arrays", never)
    model = [] if "--model" in arguments else ["--model", "demo"]
    assert main(["bench", *model, *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_known_models_have_the_shapes_of_their_names() -> None:
    assert find("sdxl-base").components["unet"].parameters == 2_567_463_684
    assert "text_encoder" not in find("sdxl-refiner").components
    vae = Component.from_json("vae", find("demo").components["vae"].json, "test")
    tiny = Checkpoint("tiny", {"vae": vae}, {}, {}, {})
    arrays = weights.arrays(tiny, "vae", "bfloat16", Parallel().replicated)
    assert {path: x.shape for path, x in arrays.items()} == dict(vae.shapes)
    assert next(iter(arrays.values())).dtype == jnp.bfloat16


def test_whole_pictures_of_random_weights() -> None:
    demo = find("demo")
    components = {name: dataclasses.replace(c, tensors={}, reader=None) for name, c in demo.components.items()}
    model = dataclasses.replace(demo, components=components, tokenizers={})
    report = measure.measure_pictures(Workload(model, 64, 64, "float32"), Parallel(), RunSettings(runs=1), count=2)
    whole, *parts = report.measurements
    assert [line.name for line in report.measurements] == ["whole", "encoding", "denoising", "decoding"]
    assert 0 < sum(part.median for part in parts) <= whole.median
    facts = [value for name, value in report.facts.items() if not name.endswith("whole")]
    assert sum(facts) <= report.facts["to the first picture, whole"]


def test_what_the_host_does_is_timed_for_every_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without weights, and without compiling any of them."""
    monkeypatch.setattr(weights, "arrays", lambda *_: pytest.fail("weights are read"))
    monkeypatch.setattr(Program, "_compile", lambda *_: pytest.fail("a program is compiled"))
    assert main(f"bench {SMALL} --only host --patch 2 --emulate --runs 2".split()) == 0
    printed = capsys.readouterr().out
    steps = "denoising, synchronous steps", "denoising, displaced steps"
    for name in ("text encoding", "conditioning", *steps, "decoding", "weights, once a picture"):
        assert len(re.findall(rf"^  {name} +\d+\.\d+ ms ", printed, re.M)) == 1

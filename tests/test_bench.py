"""`distrijax bench`: a share computes what one device of N computes; runs are counted, taken in turn, and reported."""

import dataclasses
import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parallel_helpers import UNET, relative

from distrijax import DistrijaxError, Parallel
from distrijax.checkpoint import Checkpoint, Component, find
from distrijax.cli import main
from distrijax.nn.conv import Conv
from distrijax.nn.exchange import WHOLE
from distrijax.nn.norm import GroupNorm
from distrijax.nn.transformer import SelfAttention
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.phases import SYNCHRONOUS
from distrijax.tools import loop
from distrijax.tools.bench import compare, measure, peer_diffusers, peer_maxdiffusion, steps, weights
from distrijax.tools.bench.steps import CopiedInPlace, DeviceShare
from distrijax.tools.bench.timing import RunSettings, TimedFunction, Times, take_turns
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
def unet(case: Workload) -> Any:
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
            kernel = equation.invars[1].aval.shape  # OHWI
            total += times * out * prod(kernel[1:])
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
def test_a_share_is_an_nth_of_the_arithmetic(case: Workload, unet: Any, devices: int, cfg: int) -> None:
    alone, part = DeviceShare.of(case, 1), DeviceShare.of(case, devices, cfg=cfg)
    (whole,) = multiplications(alone.call(unet), alone.layout)
    counts = multiplications(part.call(unet), part.layout)
    assert len(counts) == (1 if devices == cfg else 2)
    for own in counts:
        # What depends on no row, such as the time embedding, every device computes.
        assert 1 / devices <= own / whole < 1 / devices + 0.01


def test_a_share_has_the_shapes_of_one_device(case: Workload, unet: Any) -> None:
    """Of N virtual devices, each with its own place along the first axis of the pieces."""
    parallel, part = Parallel(patch=4, emulate=True), DeviceShare.of(case, 4)
    synchronous, _ = loop.phases(parallel)
    pieces = [
        loop.trace(call, synchronous)[1].carry.pieces
        for call in (loop.random_call(case, unet, parallel), part.call(unet))
    ]
    theirs, own = map(jax.tree.leaves, pieces)
    assert [(1, *x.shape[1:]) for x in theirs] == [x.shape for x in own]
    assert all(x.shape[0] == 4 for x in theirs)


def test_steps_run_as_often_as_wanted(case: Workload, unet: Any) -> None:
    """The carry is donated to every run, and a displaced step starts from what a synchronous one left."""
    functions = steps.steps(case, unet, Parallel(patch=2, emulate=True))
    assert set(functions) == {"synchronous", "displaced"}
    for function in functions.values():
        first, again = (function.run(function.prepare())[0].latents for _ in range(2))
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
    order: list[Any] = []
    functions = {
        name: TimedFunction(lambda inputs, name=name: order.append((name, inputs)), lambda: len(order), repeats=2)
        for name in ("a", "b")
    }
    times = take_turns(functions, RunSettings(runs=2, warm_up=1))
    assert order == [("a", 0), ("b", 1), ("a", 2), ("b", 3), ("a", 4), ("b", 5)]
    assert all(len(t.seconds) == 2 for t in times.values())
    assert Times((3.0, 1.0, 2.0)).json() == {"median": 2.0, "min": 1.0, "max": 3.0, "seconds": [3.0, 1.0, 2.0]}


def test_a_run_is_waited_for_and_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(x) or x)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    function = TimedFunction(lambda inputs: "result", lambda: "inputs", repeats=2)
    times = take_turns({"one": function}, RunSettings(runs=1, warm_up=0))
    assert waited == ["inputs", "result"]
    assert times["one"].seconds == (2.0,)


def test_diffusers_beside_predicts_the_same_from_the_same_memory(case: Workload) -> None:
    arrays = weights.arrays(case.model, "unet", "float32", Parallel().replicated)
    functions, distances = compare.compare(case, arrays, ["diffusers"], torch_compile=False)
    assert distances["diffusers"] < 1e-5
    assert set(functions) == {"distrijax", "diffusers"}
    assert functions["distrijax"].compile_seconds
    path = next(path for path in arrays if path.endswith("conv_in.kernel"))
    seen = peer_diffusers.tensor(arrays[path], (0, 2, 3, 1))
    assert seen.data_ptr() == arrays[path].unsafe_buffer_pointer()
    assert seen.shape == tuple(arrays[path].shape[i] for i in (0, 3, 1, 2))


def test_maxdiffusion_beside_predicts_the_same(case: Workload) -> None:
    pytest.importorskip("maxdiffusion", reason="maxdiffusion is installed from its repository only")
    with pytest.raises(DistrijaxError, match="32 groups, those of tiny do not"):
        compare.check(case, ["maxdiffusion"])
    config = TINY | {"block_out_channels": [32, 32, 64], "norm_num_groups": 32}
    components = {**case.model.components, "unet": Component.from_json("unet", config, "test")}
    model = dataclasses.replace(case.model, components=components)
    case = dataclasses.replace(case, model=model, height=256, width=256)
    arrays = weights.arrays(case.model, "unet", "float32", Parallel().replicated)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        compare.check(case, ["maxdiffusion"])
        functions, distances = compare.compare(case, arrays, ["maxdiffusion"], torch_compile=False)
    assert 1e-6 < distances["maxdiffusion"] < 1e-3  # its tanh GELU and its epsilon
    assert set(functions) == {"distrijax", "maxdiffusion"}


def test_parameters_have_the_names_of_maxdiffusion() -> None:
    name = "down_blocks.1.attentions.0.transformer_blocks.9.attn2.to_out.0.weight"
    renamed = peer_maxdiffusion.renamed(name, 2)
    assert "/".join(renamed) == "down_blocks_1/attentions_0/transformer_blocks_9/attn2/to_out_0/kernel"
    assert peer_maxdiffusion.renamed("conv_norm_out.weight", 1) == ("conv_norm_out", "scale")
    assert peer_maxdiffusion.renamed("conv_in.bias", 1) == ("conv_in", "bias")


@pytest.mark.parametrize("name", ["diffusers", "maxdiffusion"])
def test_a_peer_that_is_not_installed_is_told_with_the_cure(
    name: str, case: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (peer_diffusers, peer_maxdiffusion):
        monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(DistrijaxError, match=f"compare with {name}.*pip install"):
        compare.check(case, [name])


def test_bf16_weights_reach_torch_as_they_are() -> None:
    x = jnp.asarray([[1.5, -2.25, 3e-5]], jnp.bfloat16)
    assert peer_diffusers.tensor(x, (1, 0)).float().numpy().T.tolist() == x.astype(jnp.float32).tolist()


SMALL = "--model demo --height 256 --width 256 --quiet"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    functions = dict.fromkeys(("synchronous", "displaced"), TimedFunction(lambda _: None, compile_seconds=1.0))
    monkeypatch.setattr(DeviceShare, "steps", lambda self, unet: functions)
    monkeypatch.setattr(weights, "unet", lambda *_: None)
    written, picture = tmp_path / "share.json", tmp_path / "share.png"
    command = f"bench {SMALL} --runs 2 --share 1,2 --json {written} --plot {picture}"
    assert main(command.split()) == 0
    assert "2  displaced step" in capsys.readouterr().out
    (report,) = json.loads(written.read_text())
    assert {"device", "cpu", "versions"} <= set(report["machine"])
    assert report["settings"]["dtype"] == "float32"
    assert report["settings"]["latents"] == [2, 32, 32, 4]
    assert [(line["at"], len(line["seconds"])) for line in report["rows"]] == [(1, 2), (1, 2), (2, 2), (2, 2)]
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model nothing", "it must be sdxl-base"),
        ("--height 100", "it must be a multiple of 8"),
        ("--runs 0", "1 or more"),
        ("--share 3 --cfg 2", "multiple of cfg=2"),
        ("--share 64 --height 256", "choose patch="),
        ("--share 2 --patch 2", "measured on one device"),
        ("--share 4,2", "increasing order"),
        ("--share two", "not a list of numbers"),
        ("--torch-compile", "--against"),
        ("--torch-compile --against maxdiffusion", "--against diffusers"),
        ("--against flax", "diffusers, maxdiffusion"),
        ("--against diffusers,diffusers", "twice"),
        ("--values 1,2", "--sweep"),
        ("--plot a.png", "--sweep or a --share"),
        ("--share 2 --plot a.txt", ".png"),
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


def test_sweep_of_pixels_and_steps(case: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def step(case: Workload, unet: Any, parallel: Parallel) -> Any:
        seen.append((case.height, case.steps))
        return {"synchronous": TimedFunction(lambda _: None)}

    monkeypatch.setattr(steps, "steps", step)
    monkeypatch.setattr(weights, "unet", lambda *_: None)
    settings = RunSettings(runs=1)
    sizes = [case.height, 2 * case.height]
    pixels = measure.sweep("pixels", sizes, case, Parallel(), settings)
    assert [line.at for line in pixels.measurements] == sizes
    assert seen == [(size, case.steps) for size in sizes]
    monkeypatch.setattr(measure, "take_turns", lambda functions, settings: dict.fromkeys(functions, Times((0.5,))))
    together = measure.sweep("steps", [2, 4], case, Parallel(), settings)
    assert seen[2:] == [(case.height, 2), (case.height, 4)]
    assert [line.times.median for line in together.measurements] == [1.0, 2.0]


def test_known_models_have_the_shapes_of_their_names() -> None:
    assert find("sdxl-base").components["unet"].parameters == 2_567_463_684
    assert "text_encoder" not in find("sdxl-refiner").components
    vae = Component.from_json("vae", find("demo").components["vae"].json, "test")
    tiny = Checkpoint("tiny", {"vae": vae}, {}, {}, {})
    arrays = weights.arrays(tiny, "vae", "bfloat16", Parallel().replicated)
    assert {path: x.shape for path, x in arrays.items()} == dict(vae.shapes)
    assert next(iter(arrays.values())).dtype == jnp.bfloat16

"""`distrijax bench`: a share computes what one device of N computes; runs are counted, taken in turn, and reported."""

import dataclasses
import json
import sys
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
from distrijax.bench import against, figure, peer_diffusers, peer_maxdiffusion, results, step, weights
from distrijax.bench.share import Delivered, Share, layout
from distrijax.bench.timing import Times, Work, take_turns
from distrijax.checkpoint.build import blueprint
from distrijax.checkpoint.model import Model, find
from distrijax.cli import main
from distrijax.nn.attention import SelfAttention
from distrijax.nn.conv import Conv
from distrijax.nn.norm import GroupNorm
from distrijax.parallel.exchange import Whole
from distrijax.parallel.rows import Rows
from distrijax.parallel.slabs import Synchronous
from distrijax.pipelines import programs

TINY = UNET | {"projection_class_embeddings_input_dim": 8 + 6 * 4}


@pytest.fixture(scope="module")
def case() -> step.Case:
    demo = find("demo")
    tiny = blueprint("unet", TINY, "test")
    model = Model("tiny", {"unet": TINY}, {"unet": tiny, "vae": demo.blueprints["vae"]}, {}, {}, None)
    factor = demo.blueprints["vae"].config.scale_factor
    return step.Case(model, height=32 * factor, width=16 * factor, dtype="float32")


@pytest.fixture(scope="module")
def unet(case: step.Case) -> Any:
    return case.unet(Parallel())


def equations(program: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Of a traced program and those inside it, and how often each runs."""
    for equation in program.eqns:
        yield equation, times
        inside = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner, inside)


def operations(function: Any, *args: Any) -> int:
    """Multiplications of its products and convolutions."""
    total = 0
    for equation, times in equations(jax.make_jaxpr(function)(*args).jaxpr):
        out = prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += times * out * prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape  # OHWI
            total += times * out * prod(kernel[1:])
    return total


@pytest.mark.parametrize("displaced", [False, True])
@pytest.mark.parametrize(("devices", "cfg"), [(2, 1), (4, 1), (2, 2), (4, 2)])
def test_a_share_is_an_nth_of_the_arithmetic(
    case: step.Case, unet: Any, devices: int, cfg: int, displaced: bool
) -> None:
    alone = Share(case, layout(1))
    whole = operations(lambda *args: alone.program(*args, displaced=False), *alone.arguments(unet))
    part = Share(case, layout(devices, cfg=cfg))
    args = part.arguments(unet)
    if displaced:
        if not part.layout.displaces:
            pytest.skip("nothing is displaced without patches")
        args = (args[0], jax.eval_shape(lambda *a: part.program(*a, displaced=False)[0], *args), *args[2:])
    own = operations(lambda *args: part.program(*args, displaced=displaced), *args)
    # What depends on no row, such as the time embedding, every device computes.
    assert 1 / devices <= own / whole < 1 / devices + 0.01


def test_a_share_has_the_shapes_of_one_device(case: step.Case, unet: Any) -> None:
    """Of N virtual devices, each with its own place along the first axis of the pieces."""
    parallel, part = Parallel(patch=4, emulate=True), Share(case, layout(4))
    choices: dict[str, Any] = {"parallel": parallel, "rows": case.rows(parallel), "scheduler": step.SCHEDULER}
    args = step.arguments(case, unet, parallel)
    theirs = jax.eval_shape(lambda *a: programs.denoise(*a, **choices, displaced=False)[0].pieces, *args)
    own = jax.eval_shape(lambda *a: part.program(*a, displaced=False)[0].pieces, *part.arguments(unet))
    assert [(1, *x.shape[1:]) for x in jax.tree.leaves(theirs)] == [x.shape for x in jax.tree.leaves(own)]
    assert all(x.shape[0] == 4 for x in jax.tree.leaves(theirs))


def test_layers_of_a_share_equal_those_of_a_device_whose_neighbours_hold_the_same() -> None:
    """By hand: a picture of three equal slabs, of which the middle one is looked at."""
    own = jnp.asarray(np.random.RandomState(0).randn(2, 4, 6, 8), jnp.float32)
    whole = jnp.concatenate([own] * 3, 1)
    px = Synchronous(Rows(12, 3), Delivered(3))
    conv = Conv(8, 8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm = GroupNorm(8, 4, eps=1e-5, dtype=jnp.float32)
    attention = SelfAttention(8, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    conv.path, norm.path, attention.path = "conv", "norm", "attention"
    neutral = Whole()
    assert relative(conv(own, px), conv(whole, neutral)[:, 4:8]) < 1e-6
    assert relative(norm(own, px), norm(whole, neutral)[:, 4:8]) < 1e-6
    tokens, all_tokens = (x.transpose(1, 2, 0, 3) for x in (own, whole))
    assert relative(attention(tokens, px), attention(all_tokens, neutral)[4:8]) < 1e-6
    assert px.tokens("more", tokens, tokens)[0].shape == (3 * 4 * 6, 2, 8)  # all are there, not one for three


def test_turns_are_taken_and_the_warm_up_does_not_count() -> None:
    order: list[Any] = []
    works = {
        name: Work(lambda made, name=name: order.append((name, made)), prepare=lambda: len(order), per=2)
        for name in ("a", "b")
    }
    times = take_turns(works, runs=2, warm_up=1)
    assert order == [("a", 0), ("b", 1), ("a", 2), ("b", 3), ("a", 4), ("b", 5)]
    assert all(len(t.seconds) == 2 for t in times.values())
    assert Times((3.0, 1.0, 2.0)).json() == {"median": 2.0, "min": 1.0, "max": 3.0, "seconds": [3.0, 1.0, 2.0]}


def test_a_run_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(x) or x)
    take_turns({"one": Work(lambda made: "result", lambda: "made")}, runs=1, warm_up=0)
    assert waited == ["made", "result"]


def test_diffusers_beside_predicts_the_same_from_the_same_memory(case: step.Case) -> None:
    arrays = weights.arrays(case.model, "unet", "float32", Parallel().replicated)
    works, seconds, distances = against.works(case, arrays, ["diffusers"], compile_torch=False)
    assert distances["diffusers"] < 1e-5
    assert set(works) == {"distrijax", "diffusers"}
    assert set(seconds) == {"distrijax"}
    path = next(path for path in arrays if path.endswith("conv_in.kernel"))
    seen = peer_diffusers.tensor(arrays[path], (0, 2, 3, 1))
    assert seen.data_ptr() == arrays[path].unsafe_buffer_pointer()
    assert seen.shape == tuple(arrays[path].shape[i] for i in (0, 3, 1, 2))


def test_maxdiffusion_beside_predicts_the_same(case: step.Case) -> None:
    pytest.importorskip("maxdiffusion", reason="maxdiffusion is installed from its repository only")
    with pytest.raises(DistrijaxError, match="32 groups, those of tiny have not"):
        against.check(case, ["maxdiffusion"])
    config = TINY | {"block_out_channels": [32, 32, 64], "norm_num_groups": 32}
    plans = case.model.blueprints | {"unet": blueprint("unet", config, "test")}
    case = dataclasses.replace(
        case, model=dataclasses.replace(case.model, configs={"unet": config}, blueprints=plans), height=256, width=256
    )
    arrays = weights.arrays(case.model, "unet", "float32", Parallel().replicated)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        against.check(case, ["maxdiffusion"])
        works, seconds, distances = against.works(case, arrays, ["maxdiffusion"], compile_torch=False)
    assert 1e-6 < distances["maxdiffusion"] < 1e-3  # its tanh GELU and its epsilon
    assert set(works) == set(seconds) == {"distrijax", "maxdiffusion"}


def test_parameters_have_the_names_of_maxdiffusion() -> None:
    name = "down_blocks.1.attentions.0.transformer_blocks.9.attn2.to_out.0.weight"
    renamed = peer_maxdiffusion._renamed(name, 2)
    assert "/".join(renamed) == "down_blocks_1/attentions_0/transformer_blocks_9/attn2/to_out_0/kernel"
    assert peer_maxdiffusion._renamed("conv_norm_out.weight", 1) == ("conv_norm_out", "scale")
    assert peer_maxdiffusion._renamed("conv_in.bias", 1) == ("conv_in", "bias")


@pytest.mark.parametrize("name", ["diffusers", "maxdiffusion"])
def test_a_peer_that_is_not_installed_is_told_with_the_cure(
    name: str, case: step.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (peer_diffusers, peer_maxdiffusion):
        monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(DistrijaxError, match=f"compare with {name}.*pip install"):
        against.check(case, [name])


def test_bf16_weights_reach_torch_as_they_are() -> None:
    x = jnp.asarray([[1.5, -2.25, 3e-5]], jnp.bfloat16)
    assert peer_diffusers.tensor(x, (1, 0)).float().numpy().T.tolist() == x.astype(jnp.float32).tolist()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    works: Any = {"synchronous": Work(lambda _: None), "displaced": Work(lambda _: None)}
    monkeypatch.setattr(Share, "works", lambda self, unet: (works, dict.fromkeys(works, 1.0)))
    monkeypatch.setattr(step.Case, "unet", lambda self, parallel: None)
    written, plot = tmp_path / "share.json", tmp_path / "share.png"
    command = [
        "bench",
        "--model",
        "demo",
        "--height",
        "256",
        "--width",
        "256",
        "--runs",
        "2",
        "--quiet",
        "--share",
        "1,2",
    ]
    assert main([*command, "--json", str(written), "--plot", str(plot)]) == 0
    assert "one of 2, displaced" in capsys.readouterr().out
    (found,) = json.loads(written.read_text())
    assert {"device", "cpu", "versions"} <= set(found["machine"])
    assert found["settings"]["dtype"] == "float32"
    assert found["settings"]["latents"] == [2, 32, 32, 4]
    assert [len(row["seconds"]) for row in found["rows"]] == [2] * 4
    assert plot.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--model nothing", "it must be sdxl-base"),
        ("--height 100", "it must be a multiple of 8"),
        ("--runs 0", "1 or more"),
        ("--share 3 --cfg 2", "multiple of cfg=2"),
        ("--share 64 --height 256", "choose patch="),
        ("--share 2 --patch 2", "measured on one device"),
        ("--share 4,2", "and grow"),
        ("--share two", "not a list of numbers"),
        ("--torch-compile", "--against"),
        ("--torch-compile --against maxdiffusion", "--against diffusers"),
        ("--against flax", "diffusers or maxdiffusion"),
        ("--against diffusers,diffusers", "both with a comma"),
        ("--values 1,2", "--sweep"),
        ("--plot a.png", "--sweep or a --share"),
        ("--share 2 --plot a.txt", ".png"),
        ("--json nowhere/at/all.json", "no folder"),
        ("--patch 2 --mode tensor", "tensor"),
        ("--only step --cfg 2 --no-guidance --emulate", "no second guidance branch"),
    ],
)
def test_mistakes_are_told_before_any_work(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("weights were made")

    monkeypatch.setattr(weights, "arrays", never)
    model = [] if "--model" in arguments else ["--model", "demo"]
    assert main(["bench", *model, *arguments.split()]) == 2
    assert said in capsys.readouterr().err


def test_sweep_of_pixels_and_steps(case: step.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def works(case: step.Case, unet: Any, parallel: Parallel) -> Any:
        seen.append((case.height, case.steps))
        return {"synchronous": Work(lambda _: None)}, {"synchronous": 0.5}

    monkeypatch.setattr(step, "works", works)
    monkeypatch.setattr(step.Case, "unet", lambda self, parallel: None)
    effort = results.Effort(runs=1)
    sizes = [8 * case.height // case.latents[0] * n for n in (1, 2)]
    pixels = results.sweep("pixels", sizes, case, Parallel(), effort)
    assert [row.at for row in pixels.rows] == sizes
    assert [height for height, _ in seen] == sizes
    counted = results.sweep("steps", [2, 4], case, Parallel(), effort)
    assert [steps for _, steps in seen[2:]] == [2, 4]
    assert [row.name for row in counted.rows] == ["synchronous steps together"] * 2


def test_known_models_have_the_shapes_of_their_names() -> None:
    assert find("sdxl-base").blueprints["unet"].parameters == 2_567_463_684
    assert "text_encoder" not in find("sdxl-refiner").configs
    tiny = dataclasses.replace(find("demo"), source=None)
    arrays = weights.arrays(tiny, "vae", "bfloat16", Parallel().replicated)
    assert {path: x.shape for path, x in arrays.items()} == dict(tiny.blueprints["vae"].shapes)
    assert next(iter(arrays.values())).dtype == jnp.bfloat16


def test_no_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DistrijaxError, match="pip install matplotlib"):
        figure.check(Path("a.png"))

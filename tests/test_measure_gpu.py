"""`examples/measure_gpu.py`: what fails or hangs costs one stage, profiles and variants are read right, and the tables
of the documentation are those of the stored runs.
"""

import json
import lzma
import os
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from distrijax.nn.transformer import FeedForward

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from gpu import driver, profile, table
from gpu.driver import Stage, drive
from gpu.geglu import geglu
from gpu.gelus import gelu_errors, gelu_exp, gelu_logistic, gelu_tanh
from gpu.results import Results
from gpu.stages import OF_EACH_KIND, STAGES
from gpu.variants import VARIANTS, Variant, gated

ROOT = Path(__file__).parents[1]

WORKER = """
import os, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, {benchmarks!r})
from gpu.driver import Stage, work
from gpu.results import Results


def fail(setup):
    raise ValueError("no such kernel")


def die(setup):
    print("out of memory", flush=True)
    os._exit(7)


def hang(setup):
    child = subprocess.Popen(["sleep", "100"])
    (setup.results.folder / "child").write_text(str(child.pid))
    child.wait()


runs = {{"fails": fail, "dies": die, "hangs": hang}}
stages = {{
    name: Stage(runs.get(name, lambda setup: {{"figure": 1}}), 1000 if name == "long" else 0, "")
    for name in sys.argv[-1].split(";")
}}
work(stages, list(stages), SimpleNamespace(results=Results(Path({folder!r}))), float({deadline!r}))
"""


def drive_for(seconds: float, folder: Path, stages: dict[str, Stage]) -> Results:
    """Drive stages that a process of its own runs; see `WORKER`."""
    deadline, results = time.time() + seconds, Results(folder)
    script = folder / "worker.py"
    script.write_text(WORKER.format(benchmarks=str(ROOT / "benchmarks"), folder=str(folder), deadline=str(deadline)))
    drive(stages, [sys.executable, str(script)], results, deadline)
    return results


def stage(process: str, seconds: float = 0) -> Stage:
    return Stage(lambda setup: {}, seconds, process)


def test_what_fails_or_dies_costs_its_own_stage(tmp_path: Path) -> None:
    names = ["fine", "fails", "dies", "fine after it", "long"]
    stages = {name: stage("one") for name in names} | {"long": stage("one", 1000), "fine elsewhere": stage("two")}
    measured = drive_for(60, tmp_path, stages).stages
    assert list(measured) == [*names, "fine elsewhere"]
    assert all(measured[name]["figure"] == 1 for name in measured if name.startswith("fine"))
    assert "ValueError: no such kernel" in measured["fails"]["error"]
    assert "exit code 7\nout of memory" in measured["dies"]["error"]
    assert measured["long"]["skipped"].startswith("it takes 1000 s, and ")


def lives(process: int) -> bool:
    """Return after a moment whether a process, or its exit code that nobody has read, is still there."""
    time.sleep(0.1)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_nothing_outlives_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "MARGIN", 1.0)
    start = time.time()
    stages = {"fine": stage("one"), "hangs": stage("one"), "fine too": stage("one", 10)}
    measured = drive_for(8, tmp_path, stages).stages
    assert time.time() - start < 50  # what hangs would do so for 100 seconds
    assert measured["fine"]["figure"] == 1
    assert "its time limit" in measured["hangs"]["error"]
    assert "skipped" in measured["fine too"]
    child = int((tmp_path / "child").read_text())
    assert any(not lives(child) for _ in range(50))


def test_a_hanging_process_is_ended_long_before_the_deadline(tmp_path: Path) -> None:
    measured = drive_for(60, tmp_path, {"hangs": stage("one", 2), "fine": stage("two")}).stages
    assert "after 3 s, its time limit" in measured["hangs"]["error"]
    assert measured["fine"]["figure"] == 1


def test_the_same_command_goes_on(tmp_path: Path) -> None:
    stages = {"fine": stage("one"), "fails": stage("one")}
    drive_for(60, tmp_path, stages)
    results = Results(tmp_path)
    results.put("fine", {"figure": 2})  # a figure that no stage returns: it must stay
    results.put("fails", {"error": "of the first time"})
    measured = drive_for(60, tmp_path, {"fine": stage("one"), "fails": stage("one"), "fine too": stage("one")}).stages
    assert measured["fine"] == {"figure": 2}
    assert "no such kernel" in measured["fails"]["error"]
    assert measured["fine too"]["figure"] == 1


@pytest.fixture(scope="module")
def planned() -> dict[str, Any]:
    """The kernels of a displaced step of a small U-Net, compiled for H100s."""
    stored = next((ROOT / "tests" / "data").glob("displaced*.hlo.xz"))
    text = lzma.decompress(stored.read_bytes()).decode()
    kernels = profile.plan(text, "bfloat16", "NVIDIA H100 80GB HBM3")
    assert len(kernels) > 100
    return kernels


def test_a_profile_is_summed_by_kind_beside_the_plan(planned: dict[str, Any]) -> None:
    """Two steps in which every kernel of the program takes 0.5 ms, with instructions and by names alone."""
    for graphs in (False, True):
        events = [
            profile.Event(name.replace(".", "_").replace("-", "_") if graphs else "k", "" if graphs else name, 0.5)
            for name in [*planned, *planned]
        ]
        summed = profile.by_kind(events, planned, steps=2)
        kinds = summed["kinds"]
        assert set(kinds) == {kernel.kind for kernel in planned.values()}
        for kind, row in kinds.items():
            here = [kernel for kernel in planned.values() if kernel.kind == kind]
            assert row["launches"] == len(here)
            assert row["milliseconds"] == pytest.approx(0.5 * len(here))
            assert row["planned_milliseconds"] == pytest.approx(sum(k.milliseconds for k in here), abs=1e-3)
        assert summed["launches"] == len(planned)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_128x128_64x6_2x1_v_bz_bias_NNT", "products"),
        ("gemm_fusion_dot_608", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolutions"),
        ("Memset 3", "copies"),
        ("memcpy32_post", "copies"),
        ("loop_add_fusion_14", "elementwise and norms"),
    ],
)
def test_kernels_of_libraries_are_known_by_name(kernel: str, kind: str) -> None:
    assert list(profile.by_kind([profile.Event(kernel, "", 1.0)], {}, 1)["kinds"]) == [kind]


def test_the_longest_kernels_have_their_layer(planned: dict[str, Any]) -> None:
    layers = [name for name, kernel in planned.items() if kernel.layer.endswith("attn1")]
    events = [profile.Event("k", name, 2.0) for name in layers] + [profile.Event("small", "", 0.1)]
    first, second = profile.longest(events, planned, steps=1)
    assert first["layer"].endswith("attn1")
    assert (first["launches"], first["milliseconds"]) == (len(layers), 2.0 * len(layers))
    assert first["planned_milliseconds"] > 0
    assert (second["layer"], second["kernel"]) == ("", "small")


@pytest.mark.fast
def test_an_unknown_card_or_program_has_no_plan() -> None:
    assert profile.plan("HloModule x", "bfloat16", "cpu") == {}
    assert profile.plan("HloModule x", "bfloat16", "NVIDIA H200") == {}


@pytest.mark.fast
def test_a_gpu_s_kernels_are_those_of_its_streams() -> None:
    def line(name: str, *events: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(name=name, events=events)

    kernel = SimpleNamespace(name="gemm", duration_ns=2e6, stats=[("hlo_op", "dot.1")])
    hidden = SimpleNamespace(name="in a graph", duration_ns=1e6, stats=[])
    planes: list[Any] = [
        SimpleNamespace(name="/host:CPU", lines=[line("Stream of the host", kernel)]),
        SimpleNamespace(name="/device:GPU:0", lines=[line("Stream #13", kernel, hidden), line("XLA Ops", kernel)]),
    ]
    seen = [profile.Event("gemm", "dot.1", 2.0), profile.Event("in a graph", "", 1.0)]
    assert list(profile._events(planes, on_gpu=True)) == seen
    assert list(profile._events(planes[:1], on_gpu=False)) == seen[:1]


def test_the_profiler_sees_each_turn_of_a_loop() -> None:
    def run(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 3, lambda i, y: jnp.tanh(y @ y), x)

    program = jax.jit(run).lower(jnp.ones((64, 64))).compile()
    events = profile.trace(lambda: program(jnp.ones((64, 64))))
    named = [
        event for event in events if event.instruction.startswith(("dot", "tanh", "fusion", "ynn", "loop", "wrapped"))
    ]
    counts = [sum(event.instruction == name for event in named) for name in {event.instruction for event in named}]
    assert 3 in counts
    assert all(event.milliseconds > 0 for event in named)


@pytest.mark.fast
def test_gelus_are_as_far_from_the_exact_one_as_they_say() -> None:
    x = np.linspace(-12, 12, 100_001).astype(np.float32).astype(np.float64)
    exact = x * scipy.special.ndtr(x)

    def error(gelu: Any) -> float:
        return float(np.abs(np.asarray(gelu(jnp.asarray(x, jnp.float32)), np.float64) - exact).max())

    assert error(gelu_exp) < 6e-7
    assert 4e-4 < error(gelu_tanh) < 5e-4
    assert 4e-4 < error(gelu_logistic) < 5e-4
    errors = gelu_errors()
    assert errors["an exponential"][2] <= 1
    assert errors["tanh"][2] > 10


@pytest.mark.fast
@pytest.mark.parametrize(("tokens", "channels", "width"), [(256, 64, 192), (24, 96, 40)])
def test_geglu_is_a_product_and_its_gate(tokens: int, channels: int, width: int) -> None:
    rng = np.random.RandomState(0)
    x, kernel, bias = rng.randn(tokens, channels), rng.randn(channels, 2 * width), rng.randn(2 * width)
    hidden, gate = np.split(x @ kernel + bias, 2, -1)
    y = geglu(*(jnp.asarray(value, jnp.float32) for value in (x, kernel, bias)), interpret=True)
    np.testing.assert_allclose(y, hidden * gate * scipy.special.ndtr(gate), rtol=1e-5, atol=1e-3)  # up to 500


@pytest.mark.fast
@pytest.mark.parametrize("gelu", [gelu_exp, gelu_tanh, gelu_logistic])
def test_a_variant_of_the_feed_forward_differs_by_its_gelu_alone(gelu: Any) -> None:
    layer, x = FeedForward(8, dtype=jnp.float32, rngs=nnx.Rngs(0)), jnp.linspace(-2, 2, 24).reshape(3, 8)
    np.testing.assert_allclose(gated(layer, x, gelu=gelu), layer(x), rtol=0, atol=1e-3)


@pytest.mark.fast
def test_a_variant_changes_what_is_traced_and_nothing_after_it() -> None:
    layer, x = FeedForward(4, dtype=jnp.float32, rngs=nnx.Rngs(0)), 4 * jnp.ones((1, 4))
    step = jax.jit(lambda x: layer(x))
    exact = step(x)
    for name, zero in (("a variant", True), ("the default again", False)):
        variant = Variant(feed_forward=partial(gated, gelu=jnp.zeros_like)) if zero else Variant()
        with variant.active():
            y = step(x)
        assert bool((y == layer.proj_out(jnp.zeros((1, 16)))).all()) is zero, name
        assert bool((step(x) == exact).all())


@pytest.mark.fast
def test_the_tables_of_the_documentation_are_those_of_the_stored_runs() -> None:
    pages = table.pages()
    assert len(pages) >= 2
    for page, text in pages.items():
        assert page.read_text() == text, f"{page.name}: run python benchmarks/gpu/table.py"


@pytest.mark.fast
def test_a_run_becomes_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {"launches": 40, "milliseconds": 3.0, "planned_milliseconds": 2.5}
    step = {
        "step_ms": [30.0, 32.0, 31.0],
        "planned_flops": 4e12,
        "kernels": {**kernels, "kinds": {"products": kernels}},
    }
    machine = {"device": "NVIDIA H100 80GB HBM3", "versions": {"jax": "0.11.2"}}
    run = {
        "date": "2027-01-02",
        "commit": "abc",
        "stages": {
            "card": {"machine": machine, "product_flops": 8e14, "copy_bytes": 3e12},
            "1024, one": step,
            "1024, one of 8": {"step_ms": [10.0, 10.1, 10.2]},
            "1024, one of 8, no split-K": step
            | {"default_step_ms": [40.0], "relative_time": 0.775, "relative_difference": 1e-3},
            "1024, one, by operation": {
                **kernels,
                "kinds": {"copies": kernels},
                "longest": [{"layer": "ff", "kernel": "k", **kernels}],
            },
            "1024, diffusers, reduce-overhead": {"diffusers, torch.compile reduce-overhead": {"step_ms": [50.0]}},
            "first picture": {"to_first_picture": {"whole": 99.04}, "picture": {"whole": 1.234}},
            "attention": {"relative_distance": {"text": 0.002}},
            "demo pictures": {"error": "Traceback\nValueError: no"},
            "2048, one": {"skipped": "no time"},
        },
    }
    monkeypatch.setattr(table, "DOCS", tmp_path)
    (tmp_path / "measurements").mkdir()
    (tmp_path / "performance.md").write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    file = tmp_path / "measured.json"
    file.write_text(json.dumps(run))
    table.main([str(file)])
    summary = (tmp_path / "performance.md").read_text()
    assert summary.startswith("before\n")
    assert summary.endswith("after\n")
    assert "old" not in summary
    assert "| distrijax, one card | 31.0 (30.0 to 32.0) |" in summary
    assert "| what the FLOPs of a step take at the card's best | 5.0 |" in summary
    assert "| speed-up of one of 8, if every transfer hid | 3.1 |" in summary
    assert "| diffusers, torch.compile reduce-overhead, one card | 50.0 |" in summary
    page = (tmp_path / "measurements" / "h100-2027-01-02.md").read_text()
    for line in (
        "| products | 3.00, 40, 2.50 |  |",
        "| 1024, one | ff | `k` | 3.00, 40, 2.50 |",
        "| 1024, one of 8, no split-K | 40.00 | 31.00 | 0.775 | 3.00, 40, 2.50 | 1.0e-03 |",
        "| whole | 99.0 | 1.23 |",
        "- attention: text 2.0e-03",
        "- demo pictures failed: `ValueError: no`",
        "- no time was left for: 2048, one",
    ):
        assert line in page, line


@pytest.mark.fast
def test_a_tiny_run_has_a_stage_of_each_kind() -> None:
    def kind(name: str) -> object:
        run = STAGES[name].run
        return getattr(run, "func", run.__code__ if hasattr(run, "__code__") else run)

    assert {kind(name) for name in OF_EACH_KIND} == {kind(name) for name in STAGES}
    assert any(VARIANTS[name.split(", ")[-1]].tunes for name in OF_EACH_KIND if name.split(", ")[-1] in VARIANTS)


@pytest.mark.processes
def test_every_kind_of_stage_runs_on_a_cpu(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "examples" / "measure_gpu.py"), "--tiny", "--minutes", "8"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    printed = subprocess.run([*script, "--out", str(tmp_path)], env=environment, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert [line.rpartition(": ")[2] for line in printed.stdout.splitlines()] == ["measured"] * len(OF_EACH_KIND), (
        textwrap.shorten(printed.stdout, 3000)
    )
    stages = Results(tmp_path).stages
    step = stages["1024, one of 8"]
    assert step["finite"]
    assert len(step["step_ms"]) == 2
    assert step["kernels"]["milliseconds"] > 0
    assert stages["1024, one of 8, GELU by an exponential"]["relative_difference"] < 1e-5
    assert stages["1024, diffusers, reduce-overhead"]["diffusers, relative L2 distance"] < 1e-5
    assert all(distance < 0.02 for distance in stages["attention"]["relative_distance"].values())
    assert stages["demo pictures"]["decibels"]["float32"] > 80
    assert stages["demo pictures of eight patches"]["decibels"]["full_sync"] > 60
    first, again = (stages[name]["programs"] for name in ("first picture", "first picture, kept programs"))
    print(first, again)
    assert first["found"] == 0
    assert again["found"] == first["on disk"] >= 3  # of the text encoders, the denoising and the decoding

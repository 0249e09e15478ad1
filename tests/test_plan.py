"""Reading a compiled schedule, and what is planned from it. No compiler is needed.

One schedule is written by hand. The others are both programs of a small U-Net as the oldest and the newest JAX write
them (tests/store_hlo.py compiled them for eight H100s, cfg=2 x patch=4).
"""

import dataclasses
import json
import lzma
import runpy
from pathlib import Path
from typing import Any

import pytest

from distrijax import DistrijaxError, Parallel, cli
from distrijax.checkpoint import find
from distrijax.cli import plan as plan_command
from distrijax.parallel.cards import CARDS, Rates
from distrijax.tools.plan import estimate, gpus, layouts, report
from distrijax.tools.plan.hlo import Instruction
from distrijax.tools.plan.reading import read
from distrijax.tools.plan.schedule import Timeline, walk
from distrijax.tools.traffic import Traffic, Volume
from distrijax.tools.workload import Workload

# 1 TFLOP/s and 1 GB/s each, a round trip of 1 µs, and latencies apart by powers of ten: terms can be told apart.
SIZES = {"cores": 10, "lanes": 100, "clock": 1.5e9}
RATES = Rates(
    **SIZES, flops=1e12, memory=1e9, link=1e9, network=1e8, kernel=1e-5, latency=1e-3, network_latency=1e-2,
    graph=1e-7, enqueue=1e-9, slowed=0.5,
)  # fmt: skip

PROGRAM = """HloModule jit_denoise, is_scheduled=true

%fused_dot (a: bf16[1000,1000], b: bf16[1000,1000]) -> bf16[1000,1000] {
  %a = bf16[1000,1000]{1,0} parameter(0)
  %b = bf16[1000,1000]{1,0} parameter(1)
  ROOT %dot.1 = bf16[1000,1000]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_turn (c: bf16[1000,1000]) -> bf16[1000,1000] {
  %c = bf16[1000,1000]{1,0} parameter(0)
  ROOT %transpose.1 = bf16[1000,1000]{0,1} transpose(%c), dimensions={1,0}
}

%body (carry: (s32[], bf16[1000,1000], bf16[500,1000])) -> (s32[], bf16[1000,1000], bf16[500,1000]) {
  %carry = (s32[], bf16[1000,1000]{1,0}, bf16[500,1000]{1,0}) parameter(0)
  %x = bf16[1000,1000]{1,0} get-tuple-element(%carry), index=1
  %own = bf16[500,1000]{1,0} get-tuple-element(%carry), index=2
  %ag-start = (bf16[500,1000]{1,0}, bf16[2000,1000]{1,0}) all-gather-start(%own), replica_groups=GROUPS, dimensions={0}, metadata={op_name="jit(denoise)/while/body/closed_call/down.attn1/all_gather"}
  %product = bf16[1000,1000]{1,0} fusion(%x, %x), kind=kCustom, calls=%fused_dot
  %turned = bf16[1000,1000]{0,1} fusion(%product), kind=kLoop, calls=%fused_turn
  %ag-done = bf16[2000,1000]{1,0} all-gather-done(%ag-start)
  %cp-start = (bf16[500,1000]{1,0}, bf16[500,1000]{1,0}) collective-permute-start(%own), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %cp-done = bf16[500,1000]{1,0} collective-permute-done(%cp-start)
  ROOT %out = (s32[], bf16[1000,1000]{1,0}, bf16[500,1000]{1,0}) tuple(%x, %turned, %cp-done)
}

%cond (carry: (s32[], bf16[1000,1000], bf16[500,1000])) -> pred[] {
  %carry = (s32[], bf16[1000,1000]{1,0}, bf16[500,1000]{1,0}) parameter(0)
  ROOT %less = pred[] constant(false)
}

ENTRY %main (arg: (s32[], bf16[1000,1000], bf16[500,1000])) -> (s32[], bf16[1000,1000], bf16[500,1000]) {
  %arg = (s32[], bf16[1000,1000]{1,0}, bf16[500,1000]{1,0}) parameter(0)
  ROOT %while = (s32[], bf16[1000,1000]{1,0}, bf16[500,1000]{1,0}) while(%arg), condition=%cond, body=%body
}
"""  # noqa: E501
FOUR = "{{0,1,2,3}}"


def timeline(groups: str = FOUR, node: int = 4) -> Timeline:
    return walk(read(PROGRAM.replace("GROUPS", groups)), RATES, node)


def test_a_schedule_by_hand() -> None:
    step = timeline()
    product, turned = step.kernels
    assert (product.flops, product.bytes, product.category) == (2 * 10**9, 6_000_000, "products")
    # 6 MB take 6 ms, more than the arithmetic. Of 26 waves of tiles, the first waits for a quarter of the 4 MB that are
    # read, and the last writes.
    assert product.took == pytest.approx(6e-3 + (0.256 * 4e-3 + 2e-3) / 26 + 1e-5 + 4e-6)
    assert (turned.category, turned.took) == ("copies", pytest.approx(4e-3 + 1e-5 + 1e-6))
    gather, permute = step.collectives
    # Three others' pieces of 1 MB and a latency: 4 ms, hidden under 10 ms of kernels, of which it costs a half.
    assert (gather.kind, gather.layer) == ("all-gather", "down.attn1")
    assert gather.received == step.received - 1_000_000 == 3_000_000
    assert gather.ready - gather.began == pytest.approx(4e-3)
    launches = 4 * 1e-7  # all of them: two kernels in a row make no CUDA graph
    assert gather.needed == pytest.approx(1e-5 + product.took + turned.took + 2e-3 + 3 * 1e-7)
    assert (gather.waited, gather.exposed) == (0, False)
    # 1 MB and a latency, with nothing meanwhile but the launch.
    assert permute.exposed
    assert permute.waited == pytest.approx(2e-3 - 1.5e-5)
    assert step.device == pytest.approx(1e-5 + launches + product.took + turned.took + 2e-3 + 2e-3)
    assert (step.host, step.launches, step.seconds) == (pytest.approx(4e-9), 4, step.device)
    assert step.by_category()["products"] == (1, pytest.approx(product.took))


def test_a_slow_host_sets_the_pace() -> None:
    step = walk(read(PROGRAM.replace("GROUPS", FOUR)), dataclasses.replace(RATES, enqueue=1.0), 4)
    assert (step.seconds, step.device) == (4.0, timeline().device)


@pytest.mark.parametrize(
    ("groups", "received", "crosses"),
    [
        (FOUR, 3_000_000, True),
        ("{{0,1},{2,3}}", 1_000_000, False),
        ("{{0,2},{1,3}}", 1_000_000, True),
        ("[1,4]<=[4]", 3_000_000, True),
        ("[2,2]<=[4]", 1_000_000, False),
        ("[2,2]<=[2,2]T(1,0)", 1_000_000, True),
        ("mesh['a'=4] {'a'}", 3_000_000, True),
        ("mesh['a'=1,'b'=2,'c'=2] {'c'}", 1_000_000, False),
        ("mesh['a'=1,'b'=2,'c'=2] {'b'}", 1_000_000, True),
        ("mesh['b'=2,'c'=2] {'b','c'}", 3_000_000, True),
        ("mesh['b'=2,'c'=2], device_ids=([2,2]T(1,0)) {'c'}", 1_000_000, True),
        ("mesh['b'=2,'c'=2], device_ids=(0,2,1,3) {'b'}", 1_000_000, False),
    ],
)
def test_groups_of_devices_on_two_nodes(groups: str, received: int, crosses: bool) -> None:
    gather = timeline(groups, node=2).collectives[0]
    assert (gather.received, gather.nodes) == (received, crosses)
    latency, rate = (1e-2, 1e8) if crosses else (1e-3, 1e9)
    assert gather.ready - gather.began == pytest.approx(latency + received / rate)


def test_axes_of_a_mesh_are_groups_in_the_order_of_the_axes_named() -> None:
    def groups(text: str) -> list[list[int]]:
        return Instruction("x", "f32[1]", "all-gather", (), f", replica_groups={text}, dimensions={{0}}").groups

    assert groups("mesh['b'=2,'c'=3] {'c'}") == [[0, 1, 2], [3, 4, 5]]
    assert groups("mesh['b'=2,'c'=3] {'b'}") == [[0, 3], [1, 4], [2, 5]]
    assert groups("mesh['b'=2,'c'=3] {'c','b'}") == [[0, 3, 1, 4, 2, 5]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("GROUPS", "{}", "the devices of all-gather"),
        ("GROUPS", "mesh['a'=4] {'a':(1)2}", "the devices of all-gather"),
        ("GROUPS", "V4[0:3]", "the devices of all-gather"),
        (" fusion(%product)", " fft(%product)", "the instruction fft"),
        ("{1,0} fusion(%x, %x)", "{1,0} custom-call(%x, %x)", "what the custom call  .product. computes"),
        ("lhs_contracting_dims={1}, rhs_contracting_dims={0}", "", "the contracted dimensions of dot.1"),
        ("down.attn1", "attn1", "the names of layers"),
        ("while(%arg), condition=%cond, body=%body", "copy(%arg)", "a program with 0 loops"),
    ],
)
def test_what_cannot_be_read_is_an_error(old: str, new: str, message: str) -> None:
    assert old in PROGRAM
    with pytest.raises(DistrijaxError, match=rf"cannot read .*{message}.*plan with jax 0.10 to 0.12"):
        read(PROGRAM.replace(old, new).replace("GROUPS", FOUR))


H100 = Rates.of(CARDS["h100"])
JAX = pytest.mark.parametrize("jax", ["0.10", "0.12"])


def compiled(phase: str, jax: str = "0.10", rates: Rates = H100, node: int = 8) -> Timeline:
    path = Path(__file__).parent / "data" / f"{phase}-jax-{jax}.hlo.xz"
    return walk(read(lzma.decompress(path.read_bytes()).decode()), rates, node)


@JAX
def test_compiled_schedules(jax: str) -> None:
    """Both programs compute the same; a displaced step packs its transfers, and hides nearly all of them."""
    synchronous, displaced = (compiled(name, jax) for name in ("synchronous", "displaced"))
    # Counted by another program in the same text: products, convolutions and attentions of a quarter of two branches.
    for step in (synchronous, displaced):
        assert step.flops == 184_090_624
        assert sum(kernel.flops > 0 for kernel in step.kernels) == 65
    assert (len(synchronous.collectives), synchronous.received) == (66, 303_552)
    assert (len(displaced.collectives), displaced.received) == (14, 307_584)
    assert len(synchronous.exposed) == 61
    assert len(displaced.exposed) == 4
    assert synchronous.waiting > 0.4 * synchronous.device
    assert displaced.waiting < 0.05 * displaced.device


@JAX
@pytest.mark.parametrize("phase", ["synchronous", "displaced"])
def test_guidance_branches_alone_meet_across_two_nodes(phase: str, jax: str) -> None:
    """Two nodes of four: rows within a node, one sum of the branches between them; it takes the slower way."""
    rates = dataclasses.replace(H100, network=1e9, network_latency=1e-4)
    one, two = (compiled(phase, jax, rates, node) for node in (8, 4))
    assert not any(c.nodes for c in one.collectives)
    (across,) = (c for c in two.collectives if c.nodes)
    assert across.kind == "all-reduce"
    assert across.ready - across.began == pytest.approx(1e-4 + across.received / 1e9)
    assert across.received == 8 * 32 * 4 * 4  # this device's rows of one prediction, in fp32
    assert two.waiting > one.waiting + 5e-5  # some of it hides


@JAX
def test_layers_and_categories_of_a_compiled_schedule(jax: str) -> None:
    step = compiled("synchronous", jax, dataclasses.replace(H100, slowed=1e-12))
    layers = {c.layer.removeprefix("unet.") for c in step.collectives}
    assert {"conv_in", "conv_out", "down_blocks.0.resnets.0.conv1", "mid_block.resnets.1.conv2"} <= layers
    counts = {category: count for category, (count, _) in step.by_category().items()}
    assert counts["convolutions"] == sum("conv" in k.name and k.flops > 0 for k in step.kernels)
    assert sum(counts.values()) == len(step.kernels)
    kernels = sum(seconds for _, seconds in step.by_category().values())
    starts = len(step.collectives) * H100.kernel + step.launches * H100.graph
    assert kernels == pytest.approx(step.device - step.waiting - starts)


@JAX
def test_a_step_by_kind_of_layer(jax: str) -> None:
    """Every kernel once, costliest kinds first, under names without the numbers of blocks."""
    step = compiled("displaced", jax)
    layers = step.by_layer()
    for column, of_kernel in enumerate((lambda k: 1, lambda k: k.took, lambda k: k.bytes)):
        assert sum(totals[column] for totals in layers.values()) == pytest.approx(sum(map(of_kernel, step.kernels)))
    assert list(layers.values()) == sorted(layers.values(), key=lambda totals: -totals[1])
    convolutions = {layer for layer, category in layers if category == "convolutions"}
    assert {"unet.conv_in", "unet.conv_out", "resnets.conv1", "resnets.conv2"} <= convolutions
    assert not any(part.isdigit() for layer, _ in layers for part in layer.split("."))


def request(**choices: Any) -> estimate.Request:
    card = CARDS["h100"]
    sizes = {"height": 256, "width": 256, "dtype": "bfloat16", "steps": 50}
    return estimate.Request(Workload(find("demo"), **sizes | choices), card, Rates.of(card))


def plan_of(
    axes: dict[str, int], seconds: float = 1.0, held: int = 10**9, pictures: int = 1, displaced: float | None = None
) -> estimate.Plan:
    """A plan of 50 steps that nobody compiled: `seconds` for each step, or `displaced` for displaced ones."""
    volumes = [{"halos": Volume(2, 30, 60)}, {"halos": Volume(1, 10, 20), "moments": Volume(1, 1, 4)}]
    parallel, names = Parallel(**axes, emulate=True), ("synchronous", "displaced")
    traffic = Traffic(parallel, dict(zip(names, volumes, strict=True)), {"halos": 100, "latents": 10})
    phases = []
    for name, steps, each in zip(names, (5, 45), (seconds, displaced or seconds), strict=True):
        step = dataclasses.replace(timeline(), device=each)
        phases.append(estimate.PlannedPhase(name, steps, [], step, 10**8, held, 1.0))
    return estimate.Plan(request(pictures=pictures), parallel, traffic, phases)


def test_a_picture_is_its_steps() -> None:
    plan = plan_of({"patch": 4}, 0.1, displaced=0.01)
    assert plan.picture_seconds == pytest.approx(5 * 0.1 + 45 * 0.01 + 8 * plan.request.rates.dispatch)
    assert plan.memory == 2 * find("demo").parameters + 10**9 + 10**8
    parsed = json.loads(json.dumps(plan.json()))
    assert [phase["estimated_step_seconds"] for phase in parsed["phases"]] == [0.1, 0.01]
    assert (parsed["patch"], parsed["memory_bytes"], parsed["carry_bytes"]) == (4, plan.memory, 110)
    assert "moments of group norms" in report.report(plan)


def test_the_fastest_that_fits_is_recommended() -> None:
    slow, fast = plan_of({"patch": 4}, 2.0), plan_of({"cfg": 2, "patch": 2}, 1.0)
    large = plan_of({"patch": 4}, 0.5, 10**12)
    assert layouts.ranked([slow, fast, large]) == [fast, slow]
    assert not large.fits
    table = layouts.comparison([slow, fast, large])
    assert "recommended: cfg 2 x patch 2" in table
    assert "100.0 % longer\n" in table
    assert table.count("does not fit") == 1
    close = layouts.comparison([plan_of({"patch": 4}, 1.02), fast])
    assert "2.0 % longer; so close that only a measurement can tell" in close
    assert "none fits" in layouts.comparison([large])


def test_more_pictures_an_hour_are_not_a_picture_sooner() -> None:
    """Four devices make a picture each in three times the time that they make one in together."""
    fast, many = plan_of({"patch": 4}, 1.0), plan_of({"data": 4}, 3.0, pictures=4)
    assert layouts.ranked([fast, many]) == [fast]
    assert many.pictures_per_hour == pytest.approx(4 * 3600 / 150, rel=1e-3)
    assert "most pictures an hour: data 4, 4 at a time: 96" in layouts.comparison([fast, many])
    slower = plan_of({"data": 4}, 9.0, pictures=4)
    assert "most pictures an hour" not in layouts.comparison([fast, slower])


def sizes(parallel: Parallel) -> tuple[int, int, int]:
    return parallel.data, parallel.cfg, parallel.patch


BASE = Parallel(mode="stale_gn", emulate=True)


def test_layouts() -> None:
    def of(devices: int, **choices: Any) -> list[tuple[int, int, int]]:
        return [sizes(layout) for layout in layouts.layouts(devices, request(**choices), BASE)]

    assert of(8) == [(1, 1, 8), (1, 2, 4)]
    assert of(4, pictures=2) == [(1, 1, 4), (1, 2, 2), (2, 1, 2), (2, 2, 1)]
    assert (8, 1, 1) in of(8, pictures=8)
    assert of(3, guided=False) == [(1, 1, 3)]
    # 32 rows of latents, four each at least: not enough for sixteen devices.
    assert of(16) == [(1, 2, 8)]


def test_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layouts in the same mode; and, if the pictures are too few for that, one picture on each device."""
    planned: list[tuple[int, Parallel]] = []
    monkeypatch.setattr(estimate, "plan", lambda request, layout: planned.append((request.workload.pictures, layout)))
    layouts.compare(4, request(), BASE)
    assert [(pictures, sizes(layout)) for pictures, layout in planned] == [
        (1, (1, 1, 4)), (1, (1, 2, 2)), (4, (4, 1, 1))
    ]  # fmt: skip
    assert {layout.mode for _, layout in planned} == {"stale_gn"}
    planned.clear()
    layouts.compare(2, request(pictures=2, guided=False), BASE)
    assert [(pictures, sizes(layout)) for pictures, layout in planned] == [(2, (1, 1, 2)), (2, (2, 1, 1))]
    with pytest.raises(DistrijaxError, match="32 devices are too many: 8 can share a picture of 256 rows"):
        layouts.compare(32, request(), BASE)


def test_known_models() -> None:
    base = find("sdxl-base")
    assert base.components["unet"].parameters == 2_567_463_684
    assert base.parameters == 2_567_463_684 + 83_653_863 + 123_060_480 + 694_659_840
    assert find("sdxl-refiner").unet.block_out_channels[0] == 384


def test_rates_that_are_given_replace_ours() -> None:
    card = CARDS["l40s"]
    assert Rates.of(card, link=5e9) == dataclasses.replace(Rates.of(card), link=5e9)
    assert Rates.of(card).flops < card.flops
    # Inputs of float32 products are rounded to TF32, at half the rate; memory is as fast as ever.
    half = Rates.of(card, "float32")
    assert (half.flops, half.memory) == (Rates.of(card).flops / 2, Rates.of(card).memory)
    with pytest.raises(DistrijaxError, match="link is -1"):
        Rates.of(card, link=-1.0)


def test_the_picture_of_a_plan(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "docs" / "figures" / "plan.py"
    runpy.run_path(str(script))["draw"](plan_of({"patch": 4}), tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 10_000


@pytest.fixture
def with_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a CUDA compiler; nothing here gets as far as using it."""
    for module in (plan_command, gpus):
        monkeypatch.setattr(module, "missing_compiler", lambda: None)
    monkeypatch.setattr(plan_command, "prepare_cuda_compiler", lambda: None)


@pytest.mark.usefixtures("with_compiler")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patch", "0"], "--patch is 0"),
        (["--height", "1001"], "height is 1001; it must be a multiple of 8 pixels, such as 1000"),
        (["--steps", "0"], "steps is 0"),
        (["--compare", "8", "--patch", "2"], "leave out --patch"),
        (["--compare", "0"], "--compare is 0"),
        (["--flops", "-1"], "flops is -1.0"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--cfg", "2", "--no-guidance"], "cfg is 2, but there is no second guidance branch"),
        (["--patch", "100"], "patch is 100, but the picture's latents are only 128 high"),
        (["--patch", "8", "--nodes", "3"], "8 devices do not divide evenly over 3 nodes"),
        (["--mode", "fast"], "mode is 'fast'"),
        (["--mode", "tensor", "--patch", "2"], "--mode is 'tensor'"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is compiled, where there is a compiler or not."""
    assert cli.main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("with_compiler")
def test_comparing_on_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(layouts, "compare", lambda devices, *_: [plan_of({"patch": devices})])
    assert cli.main(["plan", "--model", "demo", "--compare", "8"]) == 0
    assert "recommended: patch 8" in capsys.readouterr().out
    assert cli.main(["plan", "--model", "demo", "--compare", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["patch"] == 6


def test_without_a_compiler_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        if "." in name:  # as importlib does where the package around it is missing
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(gpus, "find_spec", absent)
    assert cli.main(["plan"]) == 2
    assert "pip install 'jax[cuda12]==" in capsys.readouterr().err

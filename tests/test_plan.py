"""Reading a compiled schedule, and what is planned from it. No compiler is needed.

One schedule is written by hand. Two were compiled for eight H100s, cfg=2 x patch=4: the programs of a small U-Net at
32x32 latents with two guidance branches, without what only people read (tests/data).
"""

import dataclasses
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from distrijax import DistrijaxError, cli
from distrijax.checkpoint import find
from distrijax.plan import estimate, figure, hlo, report, schedule
from distrijax.plan.cards import CARDS, Rates

# 1 TFLOP/s and 1 GB/s each, and latencies apart by powers of ten: every term can be told from every other.
RATES = Rates(flops=1e12, memory=1e9, link=1e9, network=1e8, latency=1e-3, network_latency=1e-2, kernel=1e-5)

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


def body(groups: str = FOUR, node: int = 4) -> schedule.Body:
    return schedule.read(PROGRAM.replace("GROUPS", groups), RATES, node)


def test_a_schedule_by_hand() -> None:
    found = body()
    product, turned = found.kernels
    # 2 * 1000^3 FLOP take 2 ms, 6 MB take 6 ms: the longer, and a launch. The transpose reads and writes 4 MB.
    assert (product.flops, product.bytes, product.category) == (2 * 10**9, 6_000_000, "products")
    assert product.seconds == pytest.approx(6e-3 + 1e-5)
    assert (turned.category, turned.seconds) == ("copies", pytest.approx(4e-3 + 1e-5))
    gather, permute = found.collectives
    # Three others' pieces of 1 MB and a latency: 4 ms, hidden under 10.02 ms of kernels.
    assert (gather.kind, gather.layer, gather.received) == ("all-gather", "down.attn1", 3_000_000)
    assert gather.ready - gather.began == pytest.approx(4e-3)
    assert gather.needed == pytest.approx(10.03e-3)
    assert (gather.waited, gather.under, gather.exposed) == (0, {"products": 1}, False)
    # 1 MB and a latency, with nothing meanwhile but the launch.
    assert (permute.received, permute.exposed) == (1_000_000, True)
    assert permute.waited == pytest.approx(2e-3 - 1e-5)
    assert found.seconds == pytest.approx(10.03e-3 + 2e-3)
    assert found.wait_share == pytest.approx(1.99e-3 / 12.03e-3)
    assert found.by_category()["products"] == (1, pytest.approx(6.01e-3))
    assert schedule.largest_copies(PROGRAM) == {"transpose": (1, 2_000_000)}


@pytest.mark.parametrize(
    ("groups", "received", "crosses"),
    [
        (FOUR, 3_000_000, True),
        ("{{0,1},{2,3}}", 1_000_000, False),
        ("{{0,2},{1,3}}", 1_000_000, True),
        ("[1,4]<=[4]", 3_000_000, True),
        ("[2,2]<=[4]", 1_000_000, False),
        ("[2,2]<=[2,2]T(1,0)", 1_000_000, True),
    ],
)
def test_groups_of_devices_on_two_nodes(groups: str, received: int, crosses: bool) -> None:
    gather = body(groups, node=2).collectives[0]
    assert (gather.received, gather.nodes) == (received, crosses)
    latency, rate = (1e-2, 1e8) if crosses else (1e-3, 1e9)
    assert gather.ready - gather.began == pytest.approx(latency + received / rate)


def compiled(name: str) -> str:
    return lzma.decompress((Path(__file__).parent / "data" / f"{name}.hlo.xz").read_bytes()).decode()


@pytest.mark.parametrize(
    ("name", "transfers", "received", "exposed", "exposed_bytes", "heavy", "flops", "ms", "waited"),
    [
        ("synchronous", 66, 303_552, 61, 293_312, 65, 184_090_624, 1.2461829, 0.6007019),
        ("displaced", 14, 307_584, 4, 35_200, 65, 184_090_624, 0.5982183, 0.0201020),
    ],
)
def test_a_compiled_schedule(
    name: str,
    transfers: int,
    received: int,
    exposed: int,
    exposed_bytes: int,
    heavy: int,
    flops: int,
    ms: float,
    waited: float,
) -> None:
    """Every number as another program finds it in the same text, written apart from this one, with the same rates."""
    rates = Rates(flops=550e12, memory=2.6e12, link=320e9, network=50e9)
    found = schedule.read(compiled(name), rates, 8)
    bare = [c for c in found.collectives if c.exposed]
    assert (len(found.collectives), found.received) == (transfers, received)
    assert (len(bare), sum(c.received for c in bare)) == (exposed, exposed_bytes)
    assert (sum(kernel.flops > 0 for kernel in found.kernels), found.flops) == (heavy, flops)
    assert (found.seconds * 1e3, found.waiting * 1e3) == (pytest.approx(ms, rel=1e-6), pytest.approx(waited, rel=1e-6))


@pytest.mark.parametrize("name", ["synchronous", "displaced"])
def test_guidance_branches_alone_meet_across_two_nodes(name: str) -> None:
    """Two nodes of four: rows within a node, one sum of the branches between them; it takes the slower way."""
    rates = Rates(flops=550e12, memory=2.6e12, link=320e9, network=1e9, network_latency=1e-4)
    one, two = (schedule.read(compiled(name), rates, node) for node in (8, 4))
    assert not any(c.nodes for c in one.collectives)
    (across,) = (c for c in two.collectives if c.nodes)
    assert across.kind == "all-reduce"
    assert across.ready - across.began == pytest.approx(1e-4 + across.received / 1e9)
    assert across.received == 8 * 32 * 4 * 4  # this device's rows of one prediction, in fp32
    assert two.waiting > one.waiting + 5e-5  # some of it hides


def test_layers_and_categories_of_a_compiled_schedule() -> None:
    found = schedule.read(compiled("synchronous"), RATES, 8)
    layers = {c.layer for c in found.collectives if c.kind == "collective-permute"}
    assert {"conv_in", "conv_out", "down_blocks.0.resnets.0.conv1", "mid_block.resnets.1.conv2"} <= layers
    counts = {category: count for category, (count, _) in found.by_category().items()}
    assert counts["convolutions"] == sum("conv" in k.name and k.flops > 0 for k in found.kernels)
    assert sum(counts.values()) == len(found.kernels)
    assert sum(seconds for _, seconds in found.by_category().values()) == pytest.approx(
        found.seconds - found.waiting - len(found.collectives) * RATES.kernel
    )


def test_a_step_by_kind_of_layer() -> None:
    """Every kernel once, costliest kinds first, under names without the numbers of blocks."""
    found = schedule.read(compiled("displaced"), RATES, 8)
    rows = found.by_layer()
    for column, of_kernel in enumerate((lambda k: 1, lambda k: k.seconds, lambda k: k.bytes)):
        assert sum(row[column] for row in rows.values()) == pytest.approx(sum(map(of_kernel, found.kernels)))
    assert list(rows.values()) == sorted(rows.values(), key=lambda row: -row[1])
    convolutions = {layer for layer, category in rows if category == "convolutions"}
    assert {"conv_in", "conv_out", "resnets.conv1", "resnets.conv2"} <= convolutions
    assert not any(part.isdigit() for layer, _ in rows for part in layer.split("."))


def test_two_programs_in_one_file() -> None:
    """No name twice, so that a reader of the file sees both bodies, each as it is alone."""
    text = PROGRAM.replace("GROUPS", FOUR)
    both = hlo.parse(text + "\n" + hlo.renamed(text, ".displaced"))
    assert hlo.loop_bodies(both) == ["body", "body.displaced"]
    assert schedule.walk(both, "body", RATES, 4) == body()
    second = schedule.walk(both, "body.displaced", RATES, 4)
    assert (second.seconds, second.waiting) == (body().seconds, body().waiting)
    names = [row.name for rows in both.values() for row in rows]
    assert len(names) == 2 * sum(map(len, hlo.parse(text).values()))
    assert sum(name.endswith(".displaced") for name in names) == len(names) // 2


def test_two_compiled_programs_in_one_file() -> None:
    """The names of both begin alike: without other ones, the second would be read as parts of the first."""
    texts = [compiled(name) for name in ("synchronous", "displaced")]
    both = hlo.parse(texts[0] + "\n" + hlo.renamed(texts[1], ".displaced"))
    assert len(both) == sum(len(hlo.parse(text)) for text in texts)
    for name, text in zip(hlo.loop_bodies(both), texts, strict=True):
        alone, beside = schedule.read(text, RATES, 8), schedule.walk(both, name, RATES, 8)
        assert (beside.seconds, beside.waiting, beside.flops) == (alone.seconds, alone.waiting, alone.flops)


def request(**choices: Any) -> estimate.Request:
    card = CARDS["h100"]
    return estimate.Request(find("demo"), card, Rates.of(card), **({"height": 256, "width": 256} | choices))


def made(layout: dict[str, Any], seconds: float = 1.0, held: int = 10**9) -> estimate.Plan:
    """A plan that nobody compiled."""
    from distrijax import Parallel

    one = dataclasses.replace(body(), seconds=seconds)
    loops = [estimate.Loop(name, PROGRAM, one, {}, 10**8, held, 0.1, 1.0) for name in ("synchronous", "displaced")]
    return estimate.Plan(request(), Parallel(**layout, emulate=True), None, loops)


def test_a_picture_is_its_steps() -> None:
    plan = made({"patch": 4}, 0.1)
    faster = dataclasses.replace(plan.loops[1], body=dataclasses.replace(plan.loops[1].body, seconds=0.01))
    plan = dataclasses.replace(plan, loops=[plan.loops[0], faster])
    assert plan.picture_seconds == pytest.approx(5 * 0.1 + 45 * 0.01)  # the first and four more are synchronous
    assert plan.memory == plan.weights + 10**9 + 10**8
    assert plan.weights == 2 * find("demo").parameters
    parsed = json.loads(json.dumps(plan.json()))
    assert [loop["wait_share"] for loop in parsed["loops"]] == [loop.body.wait_share for loop in plan.loops]


def with_pictures(plan: estimate.Plan, pictures: int) -> estimate.Plan:
    return dataclasses.replace(plan, request=dataclasses.replace(plan.request, pictures=pictures))


def test_the_fastest_that_fits_is_recommended() -> None:
    slow, fast, large = made({"patch": 4}, 2.0), made({"cfg": 2, "patch": 2}, 1.0), made({"patch": 4}, 0.5, 10**12)
    assert estimate.ranked([slow, fast, large]) == [fast, slow]
    assert not large.fits
    table = report.comparison([slow, fast, large])
    assert "recommended: cfg 2 x patch 2, which is done first (50.00 s" in table
    assert "the next, patch 4, takes 100.0 % longer\n" in table
    assert table.count("does not fit") == 1
    close = report.comparison([made({"patch": 4}, 1.02), fast])
    assert "takes 2.0 % longer; so close that only a measurement can tell" in close
    assert "none fits the card's memory" in report.comparison([large])


def test_more_pictures_an_hour_are_not_a_picture_sooner() -> None:
    """Four devices make a picture each in three times the time that they make one in together."""
    fast, many = made({"patch": 4}, 1.0), with_pictures(made({"data": 4}, 3.0), 4)
    assert estimate.ranked([fast, many]) == [fast]
    assert many.pictures_per_hour == pytest.approx(4 * 3600 / 150)
    assert "most pictures an hour: data 4, 4 at a time: 96, but each is 150.00 s" in report.comparison([fast, many])
    slower = with_pictures(made({"data": 4}, 9.0), 4)
    assert "most pictures an hour" not in report.comparison([fast, slower])


def test_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, dict[str, Any]]] = []
    monkeypatch.setattr(estimate, "plan", lambda request, layout: asked.append((request.pictures, layout)))
    estimate.compare(4, request(), {"mode": "stale_gn"})
    mode = {"mode": "stale_gn"}
    assert asked == [(1, {"patch": 4} | mode), (1, {"cfg": 2, "patch": 2} | mode), (4, {"data": 4} | mode)]
    asked.clear()
    estimate.compare(2, request(pictures=2, guided=False), {})
    assert asked == [(2, {"patch": 2}), (2, {"data": 2, "patch": 1})]
    with pytest.raises(DistrijaxError, match="32 devices are too many: 8 can share a picture of 256 rows"):
        estimate.compare(32, request(), {})


def test_sent_by_kind_is_in_the_json() -> None:
    from distrijax.parallel.traffic import Sent, Traffic

    plan = made({"patch": 4})
    kinds = [{"halos": Sent(2, 30, 60, 60)}, {"halos": Sent(1, 10, 20, 20), "moments": Sent(1, 1, 4, 4)}]
    carry = dict.fromkeys(("halos", "moments", "tokens", "latents"), 0)
    plan = dataclasses.replace(plan, traffic=Traffic(plan.parallel, 2, *kinds, carry))
    assert [loop["sent_bytes"] for loop in plan.json()["loops"]] == [{"halos": 60}, {"halos": 20, "moments": 4}]
    assert "halos of convolutions" in report.report(plan)


def test_layouts() -> None:
    assert estimate.layouts(8, request()) == [{"patch": 8}, {"cfg": 2, "patch": 4}]
    assert {"data": 8, "patch": 1} in estimate.layouts(8, request(pictures=8))
    assert estimate.layouts(3, request(guided=False)) == [{"patch": 3}]
    # 32 rows of latents, four each at least: not enough for sixteen devices.
    assert estimate.layouts(16, request()) == [{"cfg": 2, "patch": 8}]


def test_known_models() -> None:
    base = find("sdxl-base")
    assert base.unet_parameters == 2_567_463_684
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
    figure.draw(made({"patch": 4}), tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patch", "0"], "--patch is 0; it must be at least 1"),
        (["--height", "1001"], "height is 1001; it must be a multiple of 8 pixels, such as 1000"),
        (["--steps", "0"], "steps is 0"),
        (["--compare", "8", "--patch", "2"], "leave out --patch"),
        (["--compare", "0"], "--compare is 0"),
        (["--compare"], "--compare needs a number of devices, such as --compare 8"),
        (["--compare", "--patch", "4", "--plot", "x.png"], "leave out --plot"),
        (["--plot", "x.gif"], "--plot: x.gif must end in one of .png, .pdf, .svg"),
        (["--hlo", "/"], "--hlo: / is a folder"),
        (["--hlo", "nowhere/x.hlo"], "no folder nowhere"),
        (["--flops", "-1"], "flops is -1.0"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--cfg", "2", "--no-guidance"], "cfg is 2, but there is no second guidance branch"),
        (["--patch", "100"], "patch is 100, but 128 rows of latents give only 32 devices"),
        (["--patch", "8", "--nodes", "3"], "8 devices cannot be dealt to 3 nodes evenly"),
        (["--mode", "fast"], "mode is 'fast'"),
        (["--mode", "tensor", "--patch", "2"], "its program is not planned"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is compiled, where there is a compiler or not."""
    for module in (cli.plan, estimate.compiling):
        monkeypatch.setattr(module, "why_not", lambda: None)
    monkeypatch.setattr(cli.plan, "prepare", lambda: None)
    assert cli.main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_comparing_as_many_devices_as_a_layout_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (cli.plan, estimate.compiling):
        monkeypatch.setattr(module, "why_not", lambda: None)
    monkeypatch.setattr(cli.plan, "prepare", lambda: None)
    asked: list[int] = []

    def compare(devices: int, *_: Any) -> list[estimate.Plan]:
        asked.append(devices)
        return [made({"patch": 4})]

    monkeypatch.setattr(estimate, "compare", compare)
    assert cli.main(["plan", "--model", "demo", "--cfg", "2", "--patch", "4", "--compare"]) == 0
    assert cli.main(["plan", "--model", "demo", "--compare", "6", "--json"]) == 0
    assert asked == [8, 6]
    output = capsys.readouterr().out
    assert "recommended: patch 4" in output
    assert json.loads(output[output.index("\n[") :])[0]["patch"] == 4


def test_a_plot_without_matplotlib_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.plan, "find_spec", lambda name: None)
    assert cli.main(["plan", "--plot", "x.png"]) == 2
    assert "pip install 'distrijax[train]'" in capsys.readouterr().err


def test_without_a_compiler_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        if "." in name:  # as importlib does where the package around it is missing
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(estimate.compiling, "find_spec", absent)
    assert cli.main(["plan"]) == 2
    assert "pip install 'jax[cuda12]==" in capsys.readouterr().err

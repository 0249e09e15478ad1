"""Mode `auto`: what a U-Net asks, how long a step waits by the estimate, and which mode is taken."""

import dataclasses
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from parallel_helpers import SMALLER
from PIL import Image

from distrijax import DistrijaxError, Parallel, cli
from distrijax.checkpoint import find
from distrijax.cli.pictures import read_settings
from distrijax.config import UNetConfig
from distrijax.models.unet import UNet
from distrijax.nn.exchange import Fit, Projection, Whole, untouched
from distrijax.nn.module import abstract
from distrijax.parallel.auto import choose as choosing
from distrijax.parallel.auto.choose import Choice, Machine, choose
from distrijax.parallel.auto.estimate import Estimate, Share, answer, estimate, message
from distrijax.parallel.auto.fitted import FITTED
from distrijax.parallel.auto.questions import questions
from distrijax.parallel.cards import CARDS, DEVICE_KINDS, Rates
from distrijax.parallel.policies import BY_EXACTNESS, MODES
from distrijax.sampling.inputs import input_shapes
from distrijax.tools.plan import estimate as planning
from distrijax.tools.traffic import count_traffic
from distrijax.tools.workload import Workload

MEASUREMENTS = Path(__file__).parents[1] / "docs" / "measurements"
DEMO, SDXL = find("demo").unet, find("sdxl-base").unet
EIGHT = Parallel(patch=8, mode="auto", emulate=True)


class Recording(Whole):
    """An exchange that notes what it is asked, and by arrays of which shape."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, tuple[int, ...]]] = []

    def halo(self, layer: str, x: Array, above: int, below: int, fit: Fit = untouched) -> Array:
        y = super().halo(layer, x, above, below, fit)  # asks for moments
        self.asked.append(("halo", layer, x.shape))
        return y

    def moments(self, layer: str, x: Array, groups: int) -> tuple[Array, Array]:
        self.asked.append(("moments", layer, x.shape))
        return super().moments(layer, x, groups)

    def attention(self, layer: str, x: Array, project: Projection, heads: int) -> Array:
        self.asked.append(("attention", layer, (x.shape[2], *x.shape[:2], x.shape[3])))
        return super().attention(layer, x, project, heads)


@pytest.mark.parametrize("config", [DEMO, UNetConfig.from_json(SMALLER)], ids=["demo", "smaller"])
def test_questions_are_those_that_the_unet_asks(config: UNetConfig) -> None:
    """In its order, with its names and channels, at its sizes: those of an odd picture, too."""
    unet, (rows, columns) = abstract(UNet, config, jnp.float32), (2 * config.row_multiple, 13)
    text, _ = input_shapes(config, guided=False, pictures=3, height=rows, width=columns)
    flat = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), text)
    exchange = Recording()

    def run(unet: UNet, x: Array, *text: Array) -> Array:
        return unet(x, jnp.float32(1), unet.condition(*text), exchange)

    jax.eval_shape(run, unet, jax.ShapeDtypeStruct((3, rows, columns, config.in_channels), np.float32), *flat)
    share = Share(rows, rows, columns, 3, 1)
    expected = [(q.kind, q.layer, (3, *share.size(q.level)[:2], q.channels)) for q in questions(config)]
    assert exchange.asked == expected


def test_the_estimate_is_that_of_compiled_programs() -> None:
    """Over a card's own link, the share within 5 points and steps within 10 %; over slower ones, within 12 and 20 %."""
    spec = importlib.util.spec_from_file_location("waiting", MEASUREMENTS / "waiting.py")
    assert spec is not None
    assert spec.loader is not None
    waiting: Any = importlib.util.module_from_spec(spec)
    sys.modules["waiting"] = waiting  # which dataclasses look up
    spec.loader.exec_module(waiting)
    cases = waiting.load()
    assert {case.mode for case in cases} == set(BY_EXACTNESS)
    for case in cases:
        found, (points, seconds) = case.estimate(FITTED), (0.05, 0.1) if case.link == "its own" else (0.12, 0.2)
        assert found.share == pytest.approx(case.waiting / case.seconds, abs=points), case
        assert found.seconds == pytest.approx(case.seconds, rel=seconds), case


def machine(card: str, **replaced: float) -> Machine:
    return Machine(CARDS[card].name, Rates.of(CARDS[card], **replaced))


def of(pixels: int, parallel: Parallel = EIGHT, cards: Machine | None = None, **choices: Any) -> Choice:
    size = {"height": pixels // 8, "width": pixels // 8, "dtype": jnp.bfloat16}
    return choose(parallel, SDXL, **size | choices, machine=cards or machine("h100"))


def test_the_larger_the_picture_the_more_exact() -> None:
    modes = [of(pixels).parallel.mode for pixels in (1024, 2048, 3840, 8192)]
    order = [BY_EXACTNESS.index(mode) for mode in modes]
    assert order == sorted(order, reverse=True)
    assert order[0] > order[-1]
    four = dataclasses.replace(EIGHT, patch=4)
    assert of(3840, four, machine("a100")).parallel.mode == "full_sync"  # compiled: it waits 3.6 %


def test_the_bound_decides() -> None:
    any_share = of(2048, dataclasses.replace(EIGHT, max_waiting=1)).why
    assert any_share is not None
    assert any_share.startswith("mode auto takes full_sync: on NVIDIA H100")
    none = of(2048, dataclasses.replace(EIGHT, max_waiting=0))
    assert none.parallel.mode == BY_EXACTNESS[-1]
    assert none.why is not None
    assert none.why.endswith("(estimated; max_waiting is 0, and none waits so little)")
    assert "full_sync 2" in none.why


def test_a_slow_link_waits_more() -> None:
    def waits(mode: str, **replaced: float) -> float:
        share = Share(256, 32, 256, 2, 8)
        return estimate(tuple(questions(SDXL)), MODES[mode], share, Rates.of(CARDS["h100"], **replaced)).share

    for mode in BY_EXACTNESS:
        assert waits(mode, link=22e9) > waits(mode) + 0.1
        assert waits(mode, latency=100e-6) > waits(mode)
    assert waits("full_sync") > waits("halo_sync") > waits(BY_EXACTNESS[-1])


@pytest.mark.parametrize("config", [DEMO, SDXL], ids=["demo", "sdxl"])
@pytest.mark.parametrize("mode", BY_EXACTNESS)
def test_everything_is_sent(config: UNetConfig, mode: str) -> None:
    """Over a link that takes a second for each MB, a step takes that long: no answer is forgotten."""
    share, asked = Share(128, 32, 128, 2, 4), tuple(questions(config))
    rates = Rates.of(CARDS["h100"], link=1e6)
    seconds = sum(message(question, MODES[mode], share)[1] for question in asked) / 1e6
    assert estimate(asked, MODES[mode], share, rates).seconds == pytest.approx(seconds, rel=0.02)


@pytest.mark.parametrize("mode", ["full_sync", "halo_sync", "halo_sync_up"])
@pytest.mark.parametrize(("patch", "size", "dealt"), [(3, (30, 29), False), (8, (1000, 500), True)], ids=str)
def test_messages_are_those_of_the_program(mode: str, patch: int, size: tuple[int, int], dealt: bool) -> None:
    """As many as are counted in a traced step, of as many bytes; rows that do not divide, and attention by heads."""
    parallel, policy = Parallel(patch=patch, mode=mode, emulate=True), MODES[mode]
    counted = list(count_traffic(DEMO, parallel, jnp.bfloat16, height=size[0], width=size[1]).steps.values())[-1]
    share = Share(size[0], parallel.layout(size[0], DEMO.row_multiple).slab, size[1], 2, patch)
    asked, found = tuple(questions(DEMO)), Counter[str]()
    for question in asked:
        messages, received = message(question, policy, share)
        found[f"{question.kind} bytes"] += round(received)
        if answer(question, policy).waits:
            found[f"{question.kind} messages"] += messages
    halos = counted["halos"] + counted["fresh_halos"]
    assert found["halo bytes"] == halos.bytes
    assert found["halo messages"] + 2 * (mode == "halo_sync_up") == halos.messages  # two carry all that are not fresh
    assert found["attention bytes"] == counted["tokens"].bytes
    attentions = sum(question.kind == "attention" for question in asked)
    if mode == "full_sync":
        assert found["moments messages"] == counted["moments"].messages
        assert found["attention messages"] == attentions * (2 if dealt else 1)  # XLA gathers keys and values at once
    assert counted["tokens"].messages == 2 * attentions


def test_rows_travel_with_moments() -> None:
    """Where latency is all there is, a residual block waits twice in `full_sync`, and for its rows in `halo_sync`."""
    asked = tuple(q for q in questions(SDXL) if q.kind != "attention" and "sampler" not in q.layer)
    count = Counter(question.kind for question in asked)

    def waiting(mode: str) -> float:
        rates = Rates.of(CARDS["h100"], latency=1.0)
        return estimate(asked, MODES[mode], Share(128, 32, 128, 2, 4), rates).waiting

    # The first convolution swaps rows of latents, with two messages; moments of the last step come with one.
    assert waiting("full_sync") == pytest.approx(2 + count["moments"], abs=0.01)
    assert waiting("halo_sync") == pytest.approx(2 + 1 + count["halo"] - 1, abs=0.01)


def test_the_share_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[Share] = []

    def record(config: UNetConfig, mode: str, share: Share, rates: Rates) -> Estimate:
        shares.append(share)
        return Estimate(1, 0)

    monkeypatch.setattr(choosing, "estimates", record)
    spread = Parallel(data=2, cfg=2, patch=2, mode="auto", emulate=True)
    size = {"height": 90, "width": 33, "pictures": 6, "machine": machine("l40s")}
    choose(spread, SDXL, **size, dtype=jnp.float32)  # type: ignore[arg-type]
    assert shares[-1] == Share(90, 48, 33, 3, 2, itemsize=4, branches_apart=True)
    choose(dataclasses.replace(spread, cfg=1), SDXL, **size, dtype=jnp.bfloat16)  # type: ignore[arg-type]
    assert shares[-1] == Share(90, 48, 33, 6, 2)
    choose(dataclasses.replace(spread, cfg=1), SDXL, **size, guided=False, dtype=jnp.bfloat16)  # type: ignore[arg-type]
    assert shares[-1] == Share(90, 48, 33, 3, 2)


def test_a_given_mode_stays() -> None:
    assert choose(
        Parallel(patch=2, mode="stale_gn", emulate=True), DEMO, height=32, width=32, dtype=jnp.float32
    ) == Choice(Parallel(patch=2, mode="stale_gn", emulate=True))


class Pretended(Parallel):
    """Devices of a kind, in so many processes."""

    devices_found: ClassVar[list[SimpleNamespace]] = []

    @property
    def mesh(self) -> Any:
        return SimpleNamespace(
            devices=np.array(self.devices_found, dtype=object).reshape(self.data, self.cfg, self.patch)
        )

    def _check_devices(self) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "processes", "platform", "why"),
    [
        ("NVIDIA H100 80GB HBM3", 1, "gpu", "on NVIDIA H100 80GB HBM3 it waits"),
        ("NVIDIA H100 80GB HBM3", 2, "gpu", "on NVIDIA H100 80GB HBM3 it waits"),  # a guidance branch in each
        ("NVIDIA H100 80GB HBM3", 4, "gpu", "on NVIDIA H100 80GB HBM3, across a network, it waits"),
        (
            "Quantum 9000",
            1,
            "gpu",
            f"takes {BY_EXACTNESS[-1]}: it waits least, and nothing is known of the speed of Quantum",
        ),
        ("cpu", 1, "cpu", "takes full_sync: CPUs have no transfers to hide"),
    ],
)
def test_real_devices(kind: str, processes: int, platform: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of_process = range(8 // processes)
    found = [
        SimpleNamespace(device_kind=kind, platform=platform, process_index=process)
        for process in range(processes)
        for _ in of_process
    ]
    monkeypatch.setattr(Pretended, "devices_found", found)
    choice = choose(Pretended(cfg=2, patch=4, mode="auto"), SDXL, height=128, width=128, dtype=jnp.bfloat16)
    assert choice.why is not None
    assert why in choice.why


def test_devices_without_transfers() -> None:
    for parallel, why in ((EIGHT, "virtual devices have"), (Parallel(mode="auto"), "no devices share a picture")):
        choice = choose(parallel, SDXL, height=128, width=128, dtype=jnp.float32)
        assert choice.parallel == dataclasses.replace(parallel, mode="full_sync")
        assert choice.why is not None
        assert why in choice.why


def test_cards_by_their_names() -> None:
    assert set(DEVICE_KINDS.values()) == set(CARDS)
    assert Machine.of("cpu", "float32") is None


def test_it_is_not_a_policy() -> None:
    with pytest.raises(DistrijaxError, match="mode is 'auto', which is chosen for each picture"):
        EIGHT.phases(5)
    assert [phase.name for _, phase in Parallel(mode="auto").phases(5)] == ["synchronous"]
    assert EIGHT.program_key == dataclasses.replace(EIGHT, max_waiting=0.5).program_key


@pytest.mark.parametrize("value", ["0.1", True, float("nan"), -0.1, 1.1, None, [0.1]])
def test_wrong_bounds(value: Any) -> None:
    with pytest.raises(DistrijaxError, match="max_waiting is"):
        Parallel(mode="auto", max_waiting=value)


def test_traffic_of_auto() -> None:
    counted = count_traffic(DEMO, Parallel(patch=2, mode="auto", emulate=True), jnp.float32)
    assert counted.parallel.mode == "full_sync"


def test_a_plan_compiles_the_chosen_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is the one that is planned for, and a network counts where a picture's devices need it."""
    taken: list[Parallel] = []

    def stop(layout: Parallel, *_: object) -> None:
        taken.append(layout)
        raise InterruptedError

    monkeypatch.setattr(planning, "on_absent_gpus", stop)
    workload = Workload(find("sdxl-base"), 3840, 3840, "bfloat16", steps=50)
    for nodes, mode in ((1, "full_sync"), (4, BY_EXACTNESS[-1])):
        request = planning.Request(workload, CARDS["a100"], Rates.of(CARDS["a100"]), nodes)
        with pytest.raises(InterruptedError):
            planning.plan(request, dataclasses.replace(EIGHT, patch=4))
        assert taken.pop().mode == mode


def test_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is that of the chosen mode, which its file names, so that it can be made again anywhere."""
    common = [
        "red circle",
        "--steps",
        "2",
        "--height",
        "64",
        "--width",
        "64",
        "--seed",
        "1",
        "--patch",
        "2",
        "--emulate",
    ]
    auto, exact, again = (tmp_path / f"{name}.png" for name in ("auto", "exact", "again"))
    assert cli.main(["generate", *common, "--mode", "auto", "--output", str(auto)]) == 0
    assert "mode auto takes full_sync: virtual devices have no transfers to wait for" in capsys.readouterr().err
    assert cli.main(["generate", *common, "--mode", "full_sync", "--output", str(exact)]) == 0
    assert cli.main(["generate", "--like", str(auto), "--output", str(again)]) == 0
    assert auto.stat().st_size > 1000
    made, given = read_settings(auto), read_settings(exact)
    assert (made.mode, made.mode_chosen_by, given.mode_chosen_by) == ("full_sync", "auto", None)
    assert read_settings(again) == made
    pictures = [np.asarray(Image.open(path)) for path in (auto, exact, again)]
    assert all((picture == pictures[0]).all() for picture in pictures)
    assert cli.main(["generate", *common, "--max-waiting", "0.1", "--output", str(tmp_path / "no.png")]) == 2
    assert "--max-waiting is about --mode auto" in capsys.readouterr().err

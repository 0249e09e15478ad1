"""The figures of the quality study: curves, quality over speed with its costs, and the contact sheet."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distrijax import DistrijaxError
from distrijax.parallel.policies import MODES

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from quality_helpers import measured, noise
from quality_study import figures, settings, sheet, tradeoff
from quality_study.settings import BASE


def test_a_plot_of_every_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that the library does not have today; those that equal one device would only stretch the axis."""
    from matplotlib.axes import Axes

    monkeypatch.setattr(figures, "MODES_COMPARED", modes := (*settings.MODES_COMPARED, "new_mode"))
    curves: list[tuple[str, list[int]]] = []

    def errorbar(axis: Axes, x: list[int], y: list[float], error: list[float], label: str, **_: object) -> None:
        axis.plot(x, y, label=label)
        curves.append((label, list(x)))

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    plan = settings.grouped(BASE, ["modes"], modes)
    plan += settings.grouped(BASE, ["warmup", "steps", "samplers"], ["sync_gn"])
    measurements = {s: measured(120.0 if s.mode == "full_sync" else 30.0 + s.steps / 10) for s in plan}
    figures.plot(measurements, BASE, tmp_path / "plot.png")
    both = (BASE.mode, "sync_gn")
    expected = [(mode, [2, 4, 8]) for mode in modes if mode != "full_sync"]
    expected += [(mode, [0, 1, 2, 4, 8]) for mode in both] + [(mode, [10, 25, 50]) for mode in both]
    assert curves == [*expected, (figures.PROPORTION, [4, 6, 10, 25, 50])]


COSTS: dict[str, Any] = {
    "card": "H100s",
    "cfg": 2,
    "patch": 4,
    "sizes": {
        "1024": {
            "one device": {"synchronous": 40.0},
            "full_sync": {"synchronous": 10.0, "waiting": 0.3},
            "corrected_async_gn": {"synchronous": 10.0, "displaced": 7.5, "waiting": 0.0},
        }
    },
}


def test_a_speed_up_counts_the_warm_up() -> None:
    assert tradeoff.speed_up(COSTS, "1024", BASE.but(mode="full_sync")) == 4
    assert tradeoff.speed_up(COSTS, "1024", BASE) == 25 * 40 / (5 * 10 + 20 * 7.5)
    assert tradeoff.speed_up(COSTS, "1024", BASE.but(steps=4)) == 4  # all of them synchronous
    assert tradeoff.speed_up(COSTS, "1024", BASE.but(mode="stale_gn")) is None


def test_the_figure_has_a_point_for_each_mode_with_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    points: list[tuple[str, float, float]] = []
    annotate = Axes.annotate

    def note(axis: Axes, text: str, xy: tuple[float, float], *args: Any, **options: Any) -> Any:
        points.append((text, *map(float, xy)))
        return annotate(axis, text, xy, *args, **options)

    monkeypatch.setattr(Axes, "annotate", note)
    measurements = {BASE: measured(30.0, 32.0), BASE.but(mode="full_sync"): measured(120.0)}
    measurements |= {BASE.but(mode="stale_gn"): measured(33.0), BASE.but(patch=8): measured(10.0)}
    assert tradeoff.tradeoff(measurements, BASE, COSTS, tmp_path / "tradeoff.png")
    assert (tmp_path / "tradeoff.png").stat().st_size > 0
    upper = {text: place for text, *place in points[:2]}
    assert upper[BASE.mode] == [5.0, 31.0]
    assert upper["full_sync"][0] == 4.0
    assert 31 < upper["full_sync"][1] < 40  # at the upper edge, not at 120 dB
    lower = {text: place for text, *place in points[2:]}
    assert lower[BASE.mode] == [5.0, pytest.approx(0.1)]
    assert 0 < lower["full_sync"][1] < 0.1
    assert not tradeoff.tradeoff({BASE.but(mode="stale_gn"): measured(33.0)}, BASE, COSTS, tmp_path / "none.png")
    partly = COSTS | {"sizes": COSTS["sizes"] | {"3840": {"one device": {"synchronous": 900.0}}}}
    assert tradeoff.tradeoff(measurements, BASE, partly, tmp_path / "partly.png")


@pytest.fixture
def costs_of_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command that writes the costs, which compiles nothing and stores in a folder of its own."""
    file = Path(__file__).parents[1] / "docs" / "measurements" / "modes.py"
    spec = importlib.util.spec_from_file_location("modes", file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STORED", tmp_path / "modes.json")
    monkeypatch.setattr("distrijax.tools.plan.gpus.prepare_cuda_compiler", lambda: None)
    return module


def test_costs_are_stored_one_by_one(costs_of_modes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[int, str]] = []

    def compile_one(size: int, mode: str) -> dict[str, float]:
        if len(compiled) == 4:
            raise KeyboardInterrupt
        compiled.append((size, mode))
        return {"synchronous": 0.04, "displaced": size / 1e5, "waiting": 0.01}

    monkeypatch.setattr(costs_of_modes, "compiled", compile_one)
    with pytest.raises(KeyboardInterrupt):
        costs_of_modes.main(["--compile"])
    first = [(1024, mode) for mode in ("one device", *list(MODES)[:3])]
    assert compiled == first
    assert list(tradeoff.read_costs(costs_of_modes.STORED)["sizes"]["1024"]) == [mode for _, mode in first]
    compiled.clear()
    with pytest.raises(KeyboardInterrupt):
        costs_of_modes.main(["--compile", "--modes", "halo_sync_up"])
    assert compiled[:2] == [(1024, "halo_sync_up"), (1024, list(MODES)[3])]
    assert "| `halo_sync_up` | 10.2, 1.0 % |" in costs_of_modes.table(costs_of_modes.load(costs_of_modes.STORED))


def test_costs_of_a_mode_that_is_gone_are_forgotten(costs_of_modes: Any) -> None:
    stored = COSTS | {"sizes": {"1024": {**COSTS["sizes"]["1024"], "of_last_week": {}}}}
    costs_of_modes.STORED.write_text(json.dumps(stored))
    assert costs_of_modes.load(costs_of_modes.STORED) == COSTS


def test_labels_keep_a_distance() -> None:
    moved = tradeoff.spread_out([0.1, 0.5, 0.51, 0.52, 1.1], 0.1)
    assert moved[0] == pytest.approx(0.1)
    assert moved[-1] <= 0.98 + 1e-9
    assert np.diff(moved).min() > 0.095
    low = tradeoff.spread_out([0.0, 0.01, 0.5], 0.1)
    assert low[0] >= 0.02
    assert low[1] - low[0] > 0.095
    assert low[2] == pytest.approx(0.5)
    assert tradeoff.spread_out([], 0.1) == []


@pytest.mark.parametrize("text", ["", "[]", '{"sizes": {"1024": {}}}', '{"sizes": {}, "patch": 4}'])
def test_costs_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(text)
    with pytest.raises(DistrijaxError, match=r"costs.json cannot be used .* --compile writes such a file"):
        tradeoff.read_costs(file)
    file.write_text(json.dumps(COSTS))
    assert tradeoff.read_costs(file) == COSTS


def test_the_sheet_marks_where_slabs_meet(tmp_path: Path) -> None:
    """33 rows of latents in slabs of an even number of rows: 12, 12 and 9."""
    layout = BASE.but(patch=3)
    assert sheet.boundaries(layout, 8 * 33, 2) == [96, 192]
    assert sheet.boundaries(BASE.but(patch=2), 64, 2) == [32]
    picture, other = noise(0, 1, 64, 64, 3), noise(1, 1, 64, 64, 3)
    measurements = {BASE.reference: measured(), BASE: measured(12.0, 30.0)}
    columns, path = [BASE.reference, BASE], tmp_path / "sheet.png"
    for shown, differs in ((picture, False), (other, True)):
        sheet.sheet(columns, [picture, shown], measurements, [(1, "a circle")], 2, path)
        pixels = np.asarray(Image.open(path).convert("RGB"))
        left = sheet.LEFT + sheet.WIDTH + sheet.GAP
        below = pixels[sheet.TOP + sheet.WIDTH + 4 :][: sheet.WIDTH, left : left + sheet.WIDTH]
        assert bool(below.any()) is differs
        red = np.flatnonzero((pixels[:, left - 4] == (214, 39, 40)).all(-1))
        expected = [sheet.TOP + y + sheet.WIDTH * i // 4 for y in (0, sheet.WIDTH + 4) for i in (1, 2, 3)]
        assert all(any(abs(row - mark) < 2 for row in red) for mark in expected)
        assert all(any(abs(row - mark) < 2 for mark in expected) for row in red)

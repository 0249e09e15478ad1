"""The study of what patches do to a picture: its measures, its table, what it expects, and that it can go on."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distrijax.demo import MODEL, scenes
from distrijax.errors import DistrijaxError

EXAMPLES = str(Path(__file__).parents[1] / "examples")
sys.path.insert(0, EXAMPLES)
try:
    import quality
    from quality_study import figures, making, metrics, report, results, settings
    from quality_study.settings import BASE, Setting
finally:
    sys.path.remove(EXAMPLES)

STUDY = {"model": "abc", "prompts": 3}


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def row(*psnr: float) -> dict[str, Any]:
    each = {"psnr": list(psnr), "ssim": [0.9] * len(psnr), "problems": [0] * len(psnr)}
    mean = {"psnr": float(np.mean(psnr)), "ssim": 0.9} if psnr else {}
    return {**mean, "obeyed": 1, "problems": 0.5, "broken": [], "each": each}


def test_psnr_of_known_errors() -> None:
    gray = np.full((3, 8, 8, 3), 0.5, np.float32)
    shifted = gray + np.float32([0.1, 0.01, 0])[:, None, None, None]
    # 1e-3 dB: the fp32 rounding of 0.51 is 3e-8 of an error of 1e-2
    np.testing.assert_allclose(metrics.psnr(shifted, gray), [20, 40, metrics.EQUAL], atol=1e-3)


def direct_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Window by window, as it is defined, of one channel."""
    distance = np.arange(11) - 5
    window = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            top = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
            values.append(top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return float(np.mean(values))


def test_ssim_is_its_definition() -> None:
    x = noise(0, 2, 16, 13, 3)
    y = np.clip(x + 0.2 * noise(1, *x.shape), 0, 1)
    wanted = [np.mean([direct_ssim(x[b, :, :, c], y[b, :, :, c]) for c in range(3)]) for b in range(2)]
    ours = metrics.ssim(x, y)
    print(ours)
    assert ours.max() < 0.99  # far enough from 1 that another window or constant would show
    np.testing.assert_allclose(ours, wanted, rtol=1e-7)  # float64, summed in another order: some 1e-12


def test_ssim_of_flat_pictures() -> None:
    """Without any structure only the means count: (2 a b + c) / (a² + b² + c)."""
    dark, light = (np.full((1, 16, 16, 3), value, np.float32) for value in (0.25, 0.75))
    np.testing.assert_allclose(metrics.ssim(dark, light), (2 * 0.1875 + 1e-4) / (0.625 + 1e-4), rtol=1e-9)
    np.testing.assert_allclose(metrics.ssim(dark, dark), 1)


def test_broken_pictures_are_found() -> None:
    pictures = noise(0, 5, 8, 8, 3)
    pictures[1] = 0
    pictures[2] = [0.2, 0.5, 0.7]  # one colour, though its channels differ
    pictures[3, 4, 4, 1] = np.nan
    assert metrics.broken(pictures).tolist() == [False, True, True, True, False]


def test_the_plan_has_what_is_asked() -> None:
    plan = settings.around(BASE)
    for mode in settings.SPREAD:
        assert {s.patch for s in plan if s.mode == mode} == {2, 4, 8}, mode
    own = [s for s in plan if s.mode == BASE.mode and s.patch == BASE.patch]
    assert {s.warmup for s in own if s.steps == BASE.steps} == {0, 1, 2, 4, 8}
    assert {s.steps for s in own} == {10, 25, 50}
    assert {s.scheduler for s in own} == {"ddim", "euler"}
    # of 10 steps 2 are synchronous, of 25 steps 5, of 50 steps 10
    assert {BASE.but(steps=10, warmup=1), BASE.but(steps=50, warmup=9)} < set(plan)
    assert len(settings.full()) == 6 + 6 * 3 * (2 + 5 * 5)  # references; and synchronous modes know no warm-up


@pytest.mark.parametrize("plan", [settings.around(BASE), settings.quick(), settings.full()])
def test_a_plan_names_each_setting_once_and_its_reference_before(plan: list[Setting]) -> None:
    assert len({s.name for s in plan}) == len(plan)
    for i, setting in enumerate(plan):
        assert setting.reference in plan[: i + 1]
    for column in settings.columns(BASE if BASE in plan else settings.QUICK):
        assert column in plan


def test_the_table() -> None:
    rows = {BASE.reference: row(), BASE: row(31.0, 32.0, 33.0)}
    lines = report.table(rows, 3).splitlines()
    assert lines[2] == "| one_device | 1 | – | 25 | ddim | – | – | 1 of 3 | 0.50 |"
    assert lines[3] == "| corrected_async_gn | 4 | 4 | 25 | ddim | 32.00 | 0.9000 | 1 of 3 | 0.50 |"
    assert "| corrected_async_gn | 32.00 dB / 0.9000 |" in report.matrix(rows, BASE)


def test_it_says_where_the_order_does_not_hold() -> None:
    naive, separate = BASE.but(mode="naive_patch"), BASE.but(mode="separate_gn")
    rows = {
        BASE: row(30.0, 31.0, 32.0),
        naive: row(20.0, 21.5, 22.0),  # 10 below
        separate: row(31.0, 32.1, 32.9),  # 1 above: the wrong way round
        BASE.but(patch=2): row(33.0, 34.1, 35.0),
        BASE.but(steps=50): row(31.0, 32.2, 33.0),
        BASE.but(patch=8): row(29.0, 33.0, 31.0),  # the same on average, within its errors
        BASE.but(warmup=8): row(30.5, 31.4, 32.6),
        BASE.reference: row(),  # has nothing to be compared with
    }
    text = report.order({s: r for s, r in rows.items() if s != BASE.reference} | {BASE.reference: {"broken": []}})
    print(text)
    assert "**naive is far worst**: holds in 3" in text
    assert "**separate is worse than stale and corrected**: does not hold in 1" in text
    name = f"{BASE.name} minus {separate.name}"
    assert f"does not hold: {name} is -1.00 ± 0.06 dB" in text
    assert "**falls with the number of patches**: holds in 1, undecided in 1" in text
    assert "**rises with warm-up**: holds in 1" in text
    assert "**rises with steps, the warm-up the same**: holds in 1" in text


def test_every_case_is_listed_those_that_do_not_hold_first() -> None:
    rows = {
        BASE: row(30.0, 31.0, 32.0),
        BASE.but(mode="sync_gn"): row(31.1, 32.0, 33.2),
        BASE.but(mode="stale_gn"): row(29.0, 32.0, 32.5),
        BASE.but(steps=50): row(31.0, 32.2, 33.0),
        BASE.in_proportion(50): row(29.1, 30.0, 31.2),
    }
    text = report.order(rows)
    stale, fresh = "undecided: corrected_async_gn-n4-w4", "holds: sync_gn-n4-w4"
    assert text.index("**the fresher the moments, the better**") < text.index(stale) < text.index(fresh)
    assert "**rises with steps, the warm-up the same**: holds in 1" in text
    assert "**rises with steps, the warm-up in proportion**: does not hold in 1" in text
    assert "**rises with warm-up**: does not hold in 1" in text  # 9 against 4, of 50 steps


def test_far_means_three_decibels() -> None:
    rows = {BASE: row(30.0, 31.0, 32.0), BASE.but(mode="naive_patch"): row(28.0, 29.1, 29.9)}
    assert "does not hold in 1" in report.order(rows)


class Counting:
    """In place of the model: rows without pictures, and how many were asked for."""

    asked: list[str]  # by all of them

    def __init__(self, *_: Any) -> None:
        pass

    def measure(self, setting: Setting) -> dict[str, Any]:
        self.asked.append(setting.name)
        return row() if setting == setting.reference else row(30.0, 31.0, 32.0)

    def check(self, mode: str) -> dict[str, Any]:
        self.asked.append(mode)
        return {"height": 232, "patch": 8, "dtype": "bfloat16", "broken": [0] if mode == "no_sync" else []}

    def pictures(self, setting: Setting, count: int) -> np.ndarray:
        return noise(0, count, 64, 64, 3)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(quality, "Studio", Counting)
    monkeypatch.setattr(Counting, "asked", [], raising=False)
    return Counting.asked


def test_it_goes_on_where_it_stopped(tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--out", str(tmp_path), "--prompts", "3", "--no-check"]
    assert quality.main([*run, "--only", "naive_patch-n4-*"]) == 0
    assert asked == ["one_device-s25-ddim", "naive_patch-n4-s25-ddim"]
    assert quality.main([*run, "--only", "naive_patch-n[48]-*"]) == 0
    assert asked[2:] == ["naive_patch-n8-s25-ddim"]
    assert quality.main([*run, "--only", "naive_patch-n[48]-*", "--anew"]) == 0
    assert len(asked) == 6
    for name in ("report.md", "plot.png", "sheet.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert quality.main(["--out", str(tmp_path), "--prompts", "5"]) == 2
    assert "prompts is 3 there, 5 here" in capsys.readouterr().err


def test_a_broken_picture_is_the_exit_status(
    tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--out", str(tmp_path), "--prompts", "3", "--only", "naive_patch-n4-*"]
    assert quality.main(run) == 1
    assert "broken: no_sync, smallest patches" in capsys.readouterr().out
    assert "no_sync" in (tmp_path / "report.md").read_text()
    assert asked[2:] == list(settings.SPREAD)
    assert quality.main(run) == 1  # from the file: nothing is computed
    assert len(asked) == 2 + len(settings.SPREAD)


def test_results_are_written_after_every_row(tmp_path: Path) -> None:
    results.Results(tmp_path, STUDY).add(BASE, row(30.0))
    again = results.Results(tmp_path, STUDY)
    assert again.rows[BASE]["psnr"] == 30
    assert json.loads(again.path.read_text())["rows"][0]["mode"] == BASE.mode
    with pytest.raises(DistrijaxError, match="model is 'abc' there, 'def' here"):
        results.Results(tmp_path, STUDY | {"model": "def"})


def test_a_plot_of_every_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[str, list[int]]] = []

    def errorbar(axis: Axes, x: Any, y: Any, error: Any, label: str, **_: Any) -> None:
        axis.plot(x, y, label=label)
        drawn.append((label, list(x)))

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    rows = {s: row() if s == s.reference else row(30.0 + s.steps / 10, 31.0) for s in settings.around(BASE)}
    figures.plot(rows, BASE, tmp_path / "plot.png")
    assert drawn[:6] == [(mode, [2, 4, 8]) for mode in settings.SPREAD[1:]]  # all but full_sync
    assert drawn[6:8] == [("corrected_async_gn, euler", [4]), (BASE.mode, [0, 1, 2, 4, 8])]
    assert drawn[8:] == [(BASE.mode, [10, 25, 50]), (figures.PROPORTION, [10, 25, 50])]


def test_pictures_of_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three prompts in batches of two: in order, with seeds of their own, made once, and judged."""
    prompts = scenes.held_out_prompts(3)
    calls: list[tuple[list[str], list[int]]] = []

    class Pipe:
        vae = None

        def __call__(self, prompt: list[str], seed: list[int], **_: Any) -> Any:
            calls.append((prompt, seed))
            latents = np.float32(seed)[:, None, None, None] + np.zeros((1, 4, 8, 8), np.float32)
            return type("Output", (), {"images": latents})

    drawn = [scenes.render(scenes.parse(p), np.random.default_rng(0)) / np.float32(255) for p in prompts]
    monkeypatch.setattr(making, "decode", lambda vae, latents: np.stack([drawn[int(x[0, 0, 0])] for x in latents]))
    monkeypatch.setattr(making.Studio, "pipe", Pipe())
    monkeypatch.setattr(making.Studio, "_choose", lambda *_: None)
    studio = making.Studio(MODEL, prompts, 2, tmp_path, lambda count: None)
    measured = studio.measure(BASE)
    assert calls[:2] == [(prompts[:2], [0, 1]), ([prompts[2], prompts[0]], [2, 0])]
    assert len(calls) == 4  # two for the reference
    assert measured["psnr"] == metrics.EQUAL
    assert measured["obeyed"] == 3  # they are drawn as the captions say
    assert measured["broken"] == []
    assert studio.measure(BASE) == measured
    assert len(calls) == 4

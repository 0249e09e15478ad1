"""The study of how patches change a picture: its metrics, its report, its expectations, and that it can be resumed."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jax.typing import DTypeLike

from distrijax import DistrijaxError, scheduler_from_config
from distrijax.demo import MODEL
from distrijax.parallel.policies import MODES

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import quality
from demo_world import captions, drawing
from quality_study import evaluation, expectations, figures, metrics, report, results, settings
from quality_study.results import Check, Measurement
from quality_study.settings import BASE, Setting

STUDY = {"model": "abc", "prompts": 3, "guidance": 5.0}


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def measured(*psnr: float) -> Measurement:
    """A measurement of three pictures, one of them without problems."""
    return Measurement([0, 1, 2], [], list(psnr), [0.9] * len(psnr))


def test_psnr_of_known_errors() -> None:
    gray = np.full((3, 8, 8, 3), 0.5, np.float32)
    shifted = gray + np.float32([0.1, 0.01, 0])[:, None, None, None]
    # 1e-3 dB: the fp32 rounding of 0.51 is 3e-8 of an error of 1e-2
    np.testing.assert_allclose(metrics.psnr(shifted, gray), [20, 40, metrics.EQUAL], atol=1e-3)


def direct_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of one channel by its definition, window by window."""
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
            numerator = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
            values.append(numerator / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return float(np.mean(values))


def test_ssim_is_its_definition() -> None:
    x = noise(0, 2, 16, 13, 3)
    y = np.clip(x + 0.2 * noise(1, *x.shape), 0, 1)
    expected = [np.mean([direct_ssim(x[b, :, :, c], y[b, :, :, c]) for c in range(3)]) for b in range(2)]
    ours = metrics.ssim(x, y)
    print(ours)
    assert ours.max() < 0.99  # far enough from 1 that another window or constant would show
    np.testing.assert_allclose(ours, expected, rtol=1e-7)  # float64, summed in another order: about 1e-12


def test_ssim_of_flat_pictures() -> None:
    """Without any structure only the means matter: (2 a b + c) / (a² + b² + c)."""
    dark, light = (np.full((1, 16, 16, 3), value, np.float32) for value in (0.25, 0.75))
    np.testing.assert_allclose(metrics.ssim(dark, light), (2 * 0.1875 + 1e-4) / (0.625 + 1e-4), rtol=1e-9)
    np.testing.assert_allclose(metrics.ssim(dark, dark), 1)


def test_broken_pictures_are_found() -> None:
    pictures = noise(0, 5, 8, 8, 3)
    pictures[1] = 0
    pictures[2] = [0.2, 0.5, 0.7]  # one colour, though its channels differ
    pictures[3, 4, 4, 1] = np.nan
    assert metrics.broken(pictures).tolist() == [False, True, True, True, False]


def test_every_mode_of_the_library_is_compared() -> None:
    """Tensor parallelism cannot be emulated; every other mode takes part as soon as the library has it."""
    assert set(settings.MODES_COMPARED) == set(MODES) - {"tensor"}
    plan = settings.around(BASE)
    for mode in settings.MODES_COMPARED:
        assert {s.patch for s in plan if s.mode == mode} == {2, 4, 8}, mode
        assert Setting(mode, 2).parallel.mode == mode
    assert not {"full_sync", "naive_patch"} & set(settings.DISPLACED)
    assert set(settings.DISPLACED) | {"full_sync", "naive_patch"} == set(settings.MODES_COMPARED)


def test_the_plan_varies_one_factor_at_a_time() -> None:
    plan = settings.around(BASE)
    same_mode = [s for s in plan if s.mode == BASE.mode and s.patch == BASE.patch]
    assert {s.warmup for s in same_mode if s.steps == BASE.steps} == {0, 1, 2, 4, 8}
    assert {s.steps for s in same_mode} == {10, 25, 50}
    assert {s.scheduler for s in same_mode} == {"ddim", "euler"}
    # 2 of 10 steps are synchronous, 5 of 25, 10 of 50
    assert {BASE.but(steps=10, warmup=1), BASE.but(steps=50, warmup=9)} < set(plan)
    displaced = len(settings.DISPLACED)
    # Two synchronous modes have no warm-up; with steps and schedulers there are 6 references.
    assert len(settings.full()) == 6 + 6 * 3 * (2 + 5 * displaced)


@pytest.mark.parametrize("plan", [settings.around(BASE), settings.quick(), settings.full()])
def test_a_plan_has_each_setting_once_after_its_reference(plan: list[Setting]) -> None:
    assert len({s.name for s in plan}) == len(plan)
    for i, setting in enumerate(plan):
        assert setting.reference in plan[: i + 1]
    for column in settings.columns(BASE if BASE in plan else settings.QUICK):
        assert column in plan


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table() -> None:
    measurements = {BASE: measured(31.0, 32.0, 33.0), BASE.reference: measured()}
    header, _, reference, base = map(cells, report.table(measurements, 3).splitlines())
    assert len(header) == len(reference) == len(base)
    assert reference == ["one_device", "1", "–", "25", "ddim", "–", "–", "1 of 3", "1.00"]
    assert base == ["corrected_async_gn", "4", "4", "25", "ddim", "32.00", "0.9000", "1 of 3", "1.00"]
    header, _, only = map(cells, report.matrix(measurements, BASE).splitlines())
    assert len(header) == 2
    assert only[0] == BASE.mode
    assert "32.00" in only[1]


def verdicts(measurements: results.Measurements, better: Setting, worse: Setting) -> list[str]:
    """The verdicts on one pair of settings."""
    pairs = [e for e in expectations.expectations(measurements) if (e.better, e.worse) == (better, worse)]
    return [expectations.judge(measurements, e)[0] for e in pairs]


def test_expectations_hold_or_not() -> None:
    naive, separate = BASE.but(mode="naive_patch"), BASE.but(mode="separate_gn")
    measurements = {
        BASE: measured(30.0, 31.0, 32.0),
        naive: measured(20.0, 21.5, 22.0),  # 10 below
        separate: measured(31.0, 32.1, 32.9),  # 1 above: contrary to the expectation
        BASE.but(patch=2): measured(33.0, 34.1, 35.0),
        BASE.but(steps=50): measured(31.0, 32.2, 33.0),
        BASE.but(patch=8): measured(29.0, 33.0, 31.0),  # equal on average
        BASE.but(warmup=8): measured(30.5, 31.4, 32.6),
    }
    pairs = {
        (BASE, naive): "holds",
        (separate, naive): "holds",
        (BASE, separate): "does not hold",
        (BASE.but(patch=2), BASE): "holds",
        (BASE, BASE.but(patch=8)): "undecided",
        (BASE.but(steps=50), BASE): "holds",
        (BASE.but(warmup=8), BASE): "holds",
    }
    assert {pair: verdicts(measurements, *pair) for pair in pairs} == {pair: [v] for pair, v in pairs.items()}
    assert not verdicts(measurements, BASE.but(patch=2), BASE.but(patch=8))  # they are not neighbours
    text = report.order(measurements)
    assert f"{BASE.name} minus {separate.name} is -1.00 ± 0.06 dB" in text


def test_warm_up_with_more_steps() -> None:
    """A warm-up of 9 of 50 steps is as long in proportion as 4 of 25: each pair has an expectation of its own."""
    more, in_proportion = BASE.but(steps=50), BASE.in_proportion(50)
    measurements = {
        BASE: measured(30.0, 31.0, 32.0),
        more: measured(31.0, 32.2, 33.0),
        in_proportion: measured(29.1, 30.0, 31.2),
    }
    assert in_proportion.warmup == 9
    assert verdicts(measurements, more, BASE) == ["holds"]
    assert verdicts(measurements, in_proportion, BASE) == ["does not hold"]
    assert verdicts(measurements, in_proportion, more) == ["does not hold"]


def test_far_means_three_decibels() -> None:
    naive = BASE.but(mode="naive_patch")
    measurements = {BASE: measured(30.0, 31.0, 32.0), naive: measured(28.0, 29.1, 29.9)}
    assert verdicts(measurements, BASE, naive) == ["does not hold"]


def test_cases_are_listed_by_verdict() -> None:
    measurements = {
        BASE: measured(30.0, 31.0, 32.0),
        BASE.but(mode="sync_gn"): measured(31.1, 32.0, 33.2),
        BASE.but(mode="stale_gn"): measured(29.0, 32.0, 32.5),
    }
    text = report.order(measurements | {BASE.reference: measured()})  # a reference has nothing to be compared with
    assert text.index("undecided: corrected_async_gn-n4-w4") < text.index("holds: sync_gn-n4-w4")


class FakeEvaluator:
    """Measures nothing and records what it is asked for."""

    requests: list[str]  # of all instances

    def __init__(self, *_: object) -> None:
        pass

    def measure(self, setting: Setting) -> Measurement:
        self.requests.append(setting.name)
        return measured() if setting == setting.reference else measured(30.0, 31.0, 32.0)

    def check(self, mode: str) -> Check:
        self.requests.append(mode)
        return Check(232, 8, "bfloat16", 0.2, [0] if mode == "no_sync" else [])

    def pictures(self, setting: Setting, count: int) -> np.ndarray:
        return noise(0, count, 64, 64, 3)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(quality, "Evaluator", FakeEvaluator)
    monkeypatch.setattr(FakeEvaluator, "requests", [], raising=False)
    return FakeEvaluator.requests


def test_a_study_resumes(tmp_path: Path, requests: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--out", str(tmp_path), "--prompts", "3", "--no-check"]
    assert quality.main([*run, "--only", "naive_patch-n4-*"]) == 0
    assert requests == ["one_device-s25-ddim", "naive_patch-n4-s25-ddim"]
    assert quality.main([*run, "--only", "naive_patch-n[48]-*"]) == 0
    assert requests[2:] == ["naive_patch-n8-s25-ddim"]
    assert quality.main([*run, "--only", "naive_patch-n[48]-*", "--restart"]) == 0
    assert len(requests) == 6
    for name in ("report.md", "plot.png", "sheet.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert quality.main(["--out", str(tmp_path), "--prompts", "5"]) == 2
    assert len(requests) == 6
    assert "prompts" in capsys.readouterr().err


def test_a_broken_picture_sets_the_exit_status(
    tmp_path: Path, requests: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--out", str(tmp_path), "--prompts", "3", "--only", "naive_patch-n4-*"]
    assert quality.main(run) == 1
    assert "no_sync" in capsys.readouterr().out
    assert "no_sync" in (tmp_path / "report.md").read_text()
    assert requests[2:] == list(settings.MODES_COMPARED)
    assert quality.main(run) == 1  # from the file: nothing is computed
    assert len(requests) == 2 + len(settings.MODES_COMPARED)


def test_results_are_written_after_every_measurement(tmp_path: Path) -> None:
    first = results.Results(tmp_path, STUDY)
    first.add(BASE, measured(30.0))
    first.add_check("stale_gn", check := Check(232, 8, "bfloat16", 0.2, [1]))
    again = results.Results(tmp_path, STUDY)
    assert again.measurements == {BASE: measured(30.0)}
    assert again.checks == {"stale_gn": check}
    with pytest.raises(DistrijaxError, match="'abc' there, 'def' here"):
        results.Results(tmp_path, STUDY | {"model": "def"})


def test_a_plot_of_every_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that the library does not have today."""
    from matplotlib.axes import Axes

    monkeypatch.setattr(settings, "MODES_COMPARED", modes := (*settings.MODES_COMPARED, "new_mode"))
    monkeypatch.setattr(figures, "MODES_COMPARED", modes)
    curves: list[tuple[str, list[int]]] = []

    def errorbar(axis: Axes, x: list[int], y: list[float], error: list[float], label: str, **_: object) -> None:
        axis.plot(x, y, label=label)
        curves.append((label, list(x)))

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    plan = settings.around(BASE)
    measurements = {s: measured() if s == s.reference else measured(30.0 + s.steps / 10, 31.0) for s in plan}
    figures.plot(measurements, BASE, tmp_path / "plot.png")
    expected = [(mode, [2, 4, 8]) for mode in modes if mode != "full_sync"]
    expected += [(f"{BASE.mode}, euler", [4]), (BASE.mode, [0, 1, 2, 4, 8])]
    expected += [(BASE.mode, [10, 25, 50]), (figures.PROPORTION, [10, 25, 50])]
    assert curves == expected


class FakePipeline:
    """Returns the seeds as latents, and records each call."""

    def __init__(self) -> None:
        self.vae = None
        self.scheduler = scheduler_from_config({"_class_name": "EulerDiscreteScheduler"})
        self.calls: list[tuple[str, int, list[str], list[int]]] = []

    def __call__(self, prompt: list[str], *, seed: list[int], **_: object) -> SimpleNamespace:
        self.calls.append((type(self.scheduler).__name__, self.parallel.patch, prompt, seed))
        latents = np.float32(seed)[:, None, None, None] + np.zeros((1, 4, 8, 8), np.float32)
        return SimpleNamespace(images=latents)


def test_pictures_of_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompts in batches of two: in order, with their own seeds, made once, and judged."""
    prompts = captions.held_out_prompts(3)
    pipe = FakePipeline()

    def load(dtype: DTypeLike) -> FakePipeline:
        return pipe

    pictures = [drawing.render(captions.parse(p), np.random.default_rng(0)) / np.float32(255) for p in prompts]
    monkeypatch.setattr(evaluation, "decode", lambda vae, latents: np.stack([pictures[int(x.max())] for x in latents]))
    evaluator = evaluation.Evaluator(load, prompts, 2, tmp_path, lambda count: None)
    measurement = evaluator.measure(BASE)
    batches = [(prompts[:2], [0, 1]), ([prompts[2], prompts[0]], [2, 0])]
    assert pipe.calls == [("DDIMScheduler", patch, *batch) for patch in (BASE.patch, 1) for batch in batches]
    equal = [metrics.EQUAL] * 3
    assert measurement == Measurement([0, 0, 0], [], equal, [1.0] * 3)  # the pictures are drawn as the captions say
    assert evaluator.measure(BASE) == measurement
    assert len(pipe.calls) == 4


def test_broken_pictures_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "decode", lambda vae, latents: np.zeros((len(latents), 256, 256, 3), np.float32))
    evaluator = evaluation.Evaluator(lambda dtype: FakePipeline(), captions.held_out_prompts(2), 2, tmp_path, print)
    measurement = evaluator.measure(BASE)
    assert measurement.broken == [0, 1]
    assert not measurement.psnr
    assert not measurement.correct


@pytest.mark.slow
def test_the_study_of_the_demo_model(tmp_path: Path) -> None:
    """Two steps of one prompt with the default mode, against one device: near it, and not equal to it."""
    steps: list[int] = []
    prompts = captions.held_out_prompts(1)
    evaluator = evaluation.Evaluator(lambda dtype: evaluation.load(MODEL, dtype), prompts, 1, tmp_path, steps.append)
    measurement = evaluator.measure(Setting(patch=2, warmup=0, steps=2))
    assert sum(steps) == 4  # two of this setting, two of the reference
    assert 10 < measurement.mean_psnr < 80

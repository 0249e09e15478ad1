"""The study of how patches change a picture: its settings and prompts, its pictures, and that it can be resumed."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distrijax import DistrijaxError
from distrijax.demo import MODEL
from distrijax.parallel.policies import MODES

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import quality
from demo_world import captions, drawing
from quality_helpers import measured, noise
from quality_study import evaluation, metrics, results, settings
from quality_study.prompts import Prompts, read_prompts
from quality_study.results import Check, Measurement
from quality_study.settings import BASE, GROUPS, ROBUSTNESS, Setting

STUDY = {"model": "demo", "weights": "abc", "prompts": "3 of a file"}


def test_every_mode_of_the_library_is_compared() -> None:
    """Tensor parallelism cannot be emulated; every other mode takes part as soon as the library has it."""
    assert set(settings.MODES_COMPARED) == set(MODES) - {"tensor"}
    assert set(settings.OWN) == set(MODES) - set(settings.ORIGINAL)
    plan = settings.grouped(BASE, ["modes"], None)
    for mode in settings.MODES_COMPARED:
        assert {s.patch for s in plan if s.mode == mode} == {2, 4, 8}, mode
        assert Setting(mode, 2).parallel.mode == mode
    assert not {"full_sync", "naive_patch"} & set(settings.DISPLACED)
    for group in ROBUSTNESS:
        modes = {s.mode for s in settings.grouped(BASE, [group], None)}
        assert modes == {settings.ONE_DEVICE, settings.BASELINE, *settings.OWN}, group
        chosen = {s.mode for s in settings.grouped(BASE, [group], ["stale_gn"])}
        assert chosen == {settings.ONE_DEVICE, settings.BASELINE, "stale_gn"}, group


def test_a_group_varies_what_its_name_says() -> None:
    varied = {
        "warmup": {"warmup"}, "steps": {"steps", "warmup"}, "guidance": {"guidance"}, "patches": {"patch"},
        "modes": {"patch"}, "sizes": {"height", "width"}, "dtypes": {"dtype"}, "samplers": {"scheduler"},
        "starts": {"strength"}, "cfg": {"cfg"},
    }  # fmt: skip
    assert {group: {name for changes in rows for name in changes} for group, rows in GROUPS.items()} == varied
    assert set(ROBUSTNESS) == set(varied) - {"modes"}
    plan = settings.grouped(BASE, ROBUSTNESS, None)
    own = {s for s in plan if s.mode == BASE.mode}
    assert {s.warmup for s in own if settings.vary_only(s, BASE, "warmup")} == {0, 1, 2, 4, 8}
    assert {s.steps for s in own} == {4, 6, 10, 25, 50}
    # 2 of 10 steps are synchronous, 5 of 25, 10 of 50
    assert {BASE.but(steps=10, warmup=1), BASE.but(steps=50, warmup=9)} < own
    assert BASE.but(cfg=2).parallel.cfg == 2


@pytest.mark.parametrize("plan", [settings.grouped(BASE, GROUPS, None), settings.quick(settings.QUICK, None)])
def test_a_plan_has_each_setting_once_after_what_it_needs(plan: list[Setting]) -> None:
    assert len({s.name for s in plan}) == len(plan)
    for i, setting in enumerate(plan):
        assert setting.reference in plan[: i + 1]
        assert setting.start is None or setting.start in plan[:i]
        assert setting.reference.parallel.size == 1


def test_a_picture_starts_from_one_that_was_made_the_same_way() -> None:
    setting = BASE.but(strength=0.5, guidance=7.5, mode="stale_gn", cfg=2)
    assert setting.start == Setting(settings.ONE_DEVICE, 1, None, guidance=7.5)
    assert setting.reference.strength == 0.5
    assert BASE.start is None


def test_what_a_setting_needs_comes_first() -> None:
    setting = BASE.but(strength=0.5)
    assert settings.with_references([setting]) == [setting.start, setting.reference, setting]


def test_sizes_are_those_of_the_model() -> None:
    large = BASE.but(height=1.5, width=2)
    assert large.pixels((256, 512)) == (384, 1024)
    assert large.pixels((1000, 1000)) == (1504, 2000)  # multiples of 8
    assert BASE.pixels((1024, 1024)) == (1024, 1024)


def test_prompts_of_the_demo_world() -> None:
    some = read_prompts("3:5")
    assert some == Prompts(captions.held_out_prompts(5)[3:], [3, 4], "3 to 4 of the demo world", True)
    assert read_prompts("5").texts[3:] == some.texts
    assert read_prompts("5").seeds == [0, 1, 2, 3, 4]


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa house \n\n  a tree, by a lake\n")
    prompts = read_prompts(str(file))
    assert (prompts.texts, prompts.seeds, prompts.judged) == (["a house", "a tree, by a lake"], [0, 1], False)
    file.write_text("a house\na tree by a lake")
    assert read_prompts(str(file)).name != prompts.name
    assert prompts.name.startswith("2 of prompts.txt (")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0", "--prompts is 0, which is none"),
        ("5:5", "it must be 1 or more, or A:B with A below B"),
        ("-3", "--prompts is -3; it must be a whole number"),
        ("2.5", "--prompts is 2.5; it must be a whole number"),
        ("3:", "--prompts is 3:; it must be a whole number"),
        ("absent.txt", "absent.txt cannot be read (No such file or directory); give a number or a text file"),
        ("./", "cannot be read (Is a directory)"),
        ("prompts.jsonl", "must be a text file with a prompt on each line, not JSON"),
        ("empty.txt", "empty.txt has no prompts; write one on each line"),
        ("latin.txt", "latin.txt cannot be read (it is not UTF-8)"),
        ("zeros.txt", "zeros.txt is not text"),
    ],
)
def test_prompts_that_cannot_be_read(
    given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All before anything is loaded, as the missing model shows."""
    monkeypatch.chdir(tmp_path)
    for name, data in {"empty": b" \n\n", "latin": b"caf\xe9", "zeros": b"a\0b", "jsonl": b"{}"}.items():
        Path(f"{name}.txt").write_bytes(data)
    assert quality.main(["--model", "absent", f"--prompts={given}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "stale"], "--modes: there is no mode 'stale'; choose among predicted"),
        (["--only", "samplerz"], "--only samplerz matches no setting; the groups are robustness, modes"),
        (["--only", "warmup", "*-s26-*"], "--only *-s26-* matches no setting"),
        (["--batch", "0"], "--batch is 0; it must be 1 or more"),
        (["--model", "absent"], "absent: there is no such file or folder"),
        (["--costs", "absent.json"], "--costs: absent.json cannot be used (FileNotFoundError"),
    ],
)
def test_wrong_options(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert quality.main(["--list", *arguments]) == 0
    return capsys.readouterr().out.split()


def test_groups_and_names_choose_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, "--only", "cfg", "--modes", "sync_gn") == [
        "one_device-s25-ddim", "corrected_async_gn-n4-w4-s25-ddim", "sync_gn-n4-w4-s25-ddim",
        "corrected_async_gn-n4-w4-s25-ddim-cfg2", "sync_gn-n4-w4-s25-ddim-cfg2",
    ]  # fmt: skip
    names = listed(capsys, "--only", "*unipc-bfloat16", "dtypes", "--modes", "stale_gn", "--dtype", "bfloat16")
    assert "stale_gn-n4-w4-s25-ddim" in names
    assert names[-2:] == ["corrected_async_gn-n4-w4-s25-unipc-bfloat16", "stale_gn-n4-w4-s25-unipc-bfloat16"]
    assert set(listed(capsys, "--only", *ROBUSTNESS)) == set(listed(capsys, "--only", "robustness"))


class FakeModel:
    """Has nothing to read."""

    fingerprint, row_multiple, size = "abc", 2, (64, 64)

    def __init__(self, source: str):
        self.source = source


class FakeEvaluator:
    """Measures nothing and records what it is asked for."""

    requests: list[str]  # of all instances
    psnr = (30.0, 31.0, 32.0)

    def __init__(self, model: FakeModel, *_: object) -> None:
        self.model = model

    def measure(self, setting: Setting) -> Measurement:
        self.requests.append(setting.name)
        return measured() if setting == setting.reference else measured(*self.psnr)

    def check(self, mode: str) -> Check:
        self.requests.append(mode)
        return Check(232, 8, "bfloat16", 0.2, [0] if mode == "no_sync" else [])

    def pictures(self, setting: Setting, indices: list[int]) -> np.ndarray:
        return noise(0, len(indices), 64, 64, 3)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(quality, "Model", FakeModel)
    monkeypatch.setattr(quality, "Evaluator", FakeEvaluator)
    monkeypatch.setattr(FakeEvaluator, "requests", [], raising=False)
    return FakeEvaluator.requests


def test_a_study_resumes(tmp_path: Path, requests: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--out", str(tmp_path), "--prompts", "3", "--no-check"]
    assert quality.main([*run, "--only", "naive_patch-n4-s25-ddim"]) == 0
    assert requests == ["one_device-s25-ddim", "naive_patch-n4-s25-ddim"]
    assert quality.main([*run, "--only", "naive_patch-n[48]-s25-ddim"]) == 0
    assert requests[2:] == ["naive_patch-n8-s25-ddim"]
    assert quality.main([*run, "--only", "naive_patch-n[48]-s25-ddim", "--restart"]) == 0
    assert len(requests) == 6
    for name in ("report.md", "plot.png", "sheet.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert quality.main(["--out", str(tmp_path), "--prompts", "5"]) == 2
    assert len(requests) == 6
    assert "prompts" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{")
    assert quality.main(run) == 2
    assert "choose another --out, or use --restart" in capsys.readouterr().err


def test_a_setting_is_made_anew(tmp_path: Path, requests: list[str]) -> None:
    run = ["--out", str(tmp_path), "--prompts", "3", "--no-check", "--only", "cfg", "--modes", "stale_gn"]
    assert quality.main(run) == 0
    files = [tmp_path / "latents" / f"{name}.npy" for name in requests]
    files[0].parent.mkdir()
    for file in files:
        file.touch()
    del requests[:]
    assert quality.main([*run, "--again", "stale_gn-*"]) == 0
    assert requests == ["stale_gn-n4-w4-s25-ddim", "stale_gn-n4-w4-s25-ddim-cfg2"]
    assert [file.stem for file in files if not file.exists()] == requests


def test_a_broken_picture_sets_the_exit_status(
    tmp_path: Path, requests: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--out", str(tmp_path), "--prompts", "3", "--only", "naive_patch-n4-s25-ddim"]
    assert quality.main(run) == 1
    assert "no_sync" in capsys.readouterr().out
    assert "no_sync" in (tmp_path / "report.md").read_text()
    assert requests[2:] == list(settings.MODES_COMPARED)
    assert quality.main(run) == 1  # from the file: nothing is computed
    assert len(requests) == 2 + len(settings.MODES_COMPARED)


def test_the_sheet_shows_the_worst_picture_too(
    tmp_path: Path, requests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[list[str], list[int]]] = []

    def note(columns: list[Setting], pictures: object, of: object, prompts: list[tuple[int, str]], *_: object) -> None:
        shown.append(([s.mode for s in columns], [index for index, _ in prompts]))

    monkeypatch.setattr(quality, "sheet", note)
    run = ["--prompts", "5", "--no-check", "--only", "cfg", "--modes", "stale_gn", "--sheet", "2"]
    for psnr, indices in ((30.0, 31.0, 32.0, 29.0, 33.0), [0, 3]), ((30.0, 31.0, 32.0, 33.0, 34.0), [0, 1]):
        monkeypatch.setattr(FakeEvaluator, "psnr", psnr)
        assert quality.main([*run, "--out", str(tmp_path / str(indices[1]))]) == 0
        assert shown.pop() == ([settings.ONE_DEVICE, BASE.mode, "stale_gn"], indices)


def test_results_are_written_after_every_measurement(tmp_path: Path) -> None:
    first = results.Results(tmp_path, STUDY)
    first.add(BASE, measured(30.0))
    first.add_check("stale_gn", check := Check(232, 8, "bfloat16", 0.2, [1]))
    again = results.Results(tmp_path, STUDY)
    assert again.measurements == {BASE: measured(30.0)}
    assert again.checks == {"stale_gn": check}
    with pytest.raises(DistrijaxError, match="'abc' there, 'def' here"):
        results.Results(tmp_path, STUDY | {"weights": "def"})


def test_a_mode_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    """A folder of another commit may have one, whose place in the tables nobody knows."""
    first = results.Results(tmp_path, STUDY)
    first.add(BASE, measured(30.0))
    first.add(BASE.but(mode="of_last_week"), measured(30.0))
    assert set(results.Results(tmp_path, STUDY).measurements) == {BASE}


class FakePipeline:
    """Returns the seeds as latents, and records each call."""

    def __init__(self) -> None:
        self.scheduler: Any = None
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompt: list[str], *, seed: list[int], **options: Any) -> SimpleNamespace:
        made = {"scheduler": self.scheduler, "patch": self.parallel.patch, "prompt": prompt, "seed": seed}
        self.calls.append(made | options)
        latents = np.float32(seed)[:, None, None, None] + np.zeros((1, 4, 8, 8), np.float32)
        return SimpleNamespace(images=latents)


class PipelineModel:
    """A model of a `FakePipeline`, whose scheduler has options of its own."""

    scheduler = json.loads((MODEL / "scheduler" / "scheduler_config.json").read_text())
    size = (256, 256)

    def __init__(self) -> None:
        self.pipe, self.dtypes = FakePipeline(), list[str]()

    def pipeline(self, dtype: Any) -> FakePipeline:
        self.dtypes.append(str(dtype))
        return self.pipe

    def vae(self) -> None:
        return None


def evaluator_of(prompts: Prompts, folder: Path, monkeypatch: pytest.MonkeyPatch, size: int = 256) -> Any:
    """An evaluator in batches of two, whose pictures are those that captions ask for, by seed."""
    drawn = [drawing.render(captions.parse(p), np.random.default_rng(0)) / np.float32(255) for p in prompts.texts]
    pictures = {seed: picture[:size, :size] for seed, picture in zip(prompts.seeds, drawn, strict=True)}
    monkeypatch.setattr(evaluation, "decode", lambda vae, latents: np.stack([pictures[int(x.max())] for x in latents]))
    pipelines = SimpleNamespace(from_pipe=lambda pipe: pipe)
    monkeypatch.setattr(evaluation, "StableDiffusionXLImg2ImgPipeline", pipelines)
    return evaluation.Evaluator(PipelineModel(), prompts, 2, folder, lambda count: None)  # type: ignore[arg-type]


def test_pictures_of_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompts in batches of two: in order, with their own seeds, made once, and judged."""
    prompts = read_prompts("4:7")
    evaluator = evaluator_of(prompts, tmp_path, monkeypatch)
    measurement, calls = evaluator.measure(BASE), evaluator.model.pipe.calls
    texts = prompts.texts
    batches = [(texts[:2], [4, 5]), ([texts[2], texts[0]], [6, 4])]
    made = [(call["patch"], call["prompt"], call["seed"]) for call in calls]
    assert made == [(patch, *batch) for patch in (BASE.patch, 1) for batch in batches]
    assert {(call["num_inference_steps"], call["guidance_scale"], call["height"]) for call in calls} == {(25, 5.0, 256)}
    equal = [metrics.EQUAL] * 3
    assert measurement.problems == [0, 0, 0]  # the pictures are drawn as the captions say
    assert (measurement.broken, measurement.psnr, measurement.ssim) == ([], equal, [1.0] * 3)
    assert {"commit", "date", "device", "jax", "seconds"} <= set(measurement.made)
    assert evaluator.measure(BASE).psnr == equal
    assert len(calls) == 4


def test_each_setting_is_made_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a sampler's options do not remain for the next one."""
    evaluator = evaluator_of(read_prompts("2"), tmp_path, monkeypatch)
    calls = evaluator.model.pipe.calls
    for name, karras in (("dpmpp_2m_karras", True), ("dpmpp_2m", False)):
        evaluator.latents(BASE.but(scheduler=name))
        assert calls[-1]["scheduler"].config["use_karras_sigmas"] is karras
    evaluator.latents(BASE.but(guidance=7.5, steps=10, height=1.5, width=2, dtype="bfloat16"))
    options = {name: calls[-1][name] for name in ("guidance_scale", "num_inference_steps", "height", "width")}
    assert options == {"guidance_scale": 7.5, "num_inference_steps": 10, "height": 384, "width": 512}
    assert evaluator.model.dtypes == ["float32", "float32", "bfloat16"]


def test_pictures_start_from_those_of_the_next_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = evaluator_of(read_prompts("3"), tmp_path, monkeypatch)
    evaluator.latents(BASE.but(strength=0.5))
    changed = [call for call in evaluator.model.pipe.calls if "image" in call]
    assert [call["image"].max((1, 2, 3)).tolist() for call in changed] == [[1, 2], [0, 1]]
    assert {(call["strength"], call["patch"]) for call in changed} == {(0.5, 4)}
    assert {call["patch"] for call in evaluator.model.pipe.calls if "image" not in call} == {1}


def test_only_the_demo_world_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = evaluator_of(read_prompts("2"), tmp_path, monkeypatch, size=128)
    assert evaluator.measure(BASE.reference).problems == []
    evaluator = evaluator_of(dataclasses.replace(read_prompts("2"), judged=False), tmp_path, monkeypatch)
    assert evaluator.measure(BASE.reference).problems == []


def test_broken_pictures_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = evaluator_of(read_prompts("2"), tmp_path, monkeypatch)
    monkeypatch.setattr(evaluation, "decode", lambda vae, latents: np.zeros((len(latents), 256, 256, 3), np.float32))
    measurement = evaluator.measure(BASE)
    assert measurement.broken == [0, 1]
    assert not measurement.psnr
    assert not measurement.correct


@pytest.mark.slow
def test_the_study_of_the_demo_model(tmp_path: Path) -> None:
    """Two steps of one prompt with the default mode, against one device: near it, and not equal to it."""
    steps: list[int] = []
    evaluator = evaluation.Evaluator(evaluation.Model("demo"), read_prompts("1"), 1, tmp_path, steps.append)
    measurement = evaluator.measure(Setting(patch=2, warmup=0, steps=2))
    assert steps == [2, 2]  # of this setting, and of the reference
    assert 10 < measurement.mean_psnr < 80

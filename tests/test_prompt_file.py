"""`distrijax generate --prompts`: many pictures, each as it would be alone, in a folder that can be continued."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_checkpoint import SHALLOW, base_pipeline
from safetensors.numpy import save_file
from test_cli import in_an_empty_folder, pixels, run, settings

from distrijax import StableDiffusionXLPipeline
from distrijax.cli import generate
from distrijax.cli.prompt_file import read_requests
from distrijax.cli.settings import Settings

__all__ = ["in_an_empty_folder"]  # a fixture

PROMPTS = ["a red cat", "a blue dog", "", "a circle", "red", "  a green dog  "]
LINES = [
    {"prompt": "a red cat", "seed": 7},
    {"prompt": "a blue dog", "negative_prompt": "red"},
    {"prompt": "a circle", "negative_prompt": "cat", "negative_prompt_2": "dog", "prompt_2": "a square"},
    {"prompt": "a red cat", "steps": 3, "guidance_scale": 3, "seed": 7},
    {"prompt": "a green dog", "guidance_rescale": 0.5},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    base_pipeline(folder, **SHALLOW).save_pretrained(folder / "base")
    return str(folder / "base")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pipelines that were loaded."""
    pipes: list[Any] = []
    load = generate._load
    monkeypatch.setattr(generate, "_load", lambda *arguments: pipes.append(load(*arguments)) or pipes[-1])
    return pipes


def make(model: str, file: str, *arguments: str) -> int:
    options = ["--model", model, "--steps", "2", "--out", "made", "--quiet"]
    return run("generate", "--prompts", file, *options, *arguments)


def write(lines: list[Any]) -> str:
    Path("prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return "prompts.jsonl"


def manifest() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("made/manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_picture_is_as_it_would_be_alone(
    model: str, loaded: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the batches, of which the last one is filled up, and nothing but the first compiles."""
    Path("prompts.txt").write_text("\ufeff" + "\n".join(PROMPTS), encoding="utf-8")
    assert make(model, "prompts.txt", "--seed", "3", "--batch-size", "2", "--data", "2") == 0
    names = ["0001.png", "0002.png", "0004.png", "0005.png", "0006.png"]  # the numbers of the lines
    assert capsys.readouterr().out.split() == [f"made/{name}" for name in names]
    assert sorted(path.name for path in Path("made").iterdir()) == [*names, "manifest.jsonl"]
    (pipe,) = loaded
    assert {name: len(program._prepared) for name, program in pipe.programs.denoise.items()} == {
        "synchronous": 1,
        "displaced": 0,
    }
    alone = StableDiffusionXLPipeline.from_pretrained(model, progress=False)
    for i, (name, line) in enumerate(zip(names, manifest(), strict=True)):
        prompt = [prompt.strip() for prompt in PROMPTS if prompt][i]
        assert (line["file"], line["prompt"], line["seed"]) == (name, prompt, 3 + i)
        assert {key: line[key] for key in settings(f"made/{name}") if key != "version"} == {
            key: value for key, value in settings(f"made/{name}").items() if key != "version"
        }
        (picture,) = alone(prompt, num_inference_steps=2, seed=3 + i).images
        # Roundings of another batch size; those of another picture are 50 and more.
        assert np.abs(pixels(f"made/{name}").astype(int) - np.asarray(picture)).max() <= 2


def test_lines_have_settings_of_their_own(model: str, loaded: list[Any]) -> None:
    assert make(model, write(LINES), "--batch-size", "2", "--num-images", "2", "--guidance-rescale", "0.3") == 0
    alone = StableDiffusionXLPipeline.from_pretrained(model, progress=False)
    lines = manifest()
    assert [line["file"] for line in lines] == [f"000{i}-{j}.png" for i in range(1, 6) for j in (1, 2)]
    for i, line in enumerate(lines):
        asked: dict[str, Any] = {"steps": 2, "seed": i // 2 * 2, "guidance_rescale": 0.3} | LINES[i // 2]
        seed = asked.pop("seed") + i % 2
        assert line["seed"] == seed
        (picture,) = alone(num_inference_steps=asked.pop("steps"), seed=seed, **asked).images
        assert np.abs(pixels(f"made/{line['file']}").astype(int) - np.asarray(picture)).max() <= 2
    (pipe,) = loaded
    assert {len(program._prepared) for program in pipe.programs.all} == {0, 1}


def test_an_ended_run_goes_on(model: str, loaded: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    file, call, calls = write([{"prompt": prompt} for prompt in "abcde"]), StableDiffusionXLPipeline.__call__, []

    def ended(self: Any, *arguments: Any, **options: Any) -> Any:
        if not self.only_compiles:
            calls.append(options["seed"])
            if len(calls) == 2:
                raise KeyboardInterrupt
        return call(self, *arguments, **options)

    monkeypatch.setattr(StableDiffusionXLPipeline, "__call__", ended)
    assert make(model, file, "--batch-size", "2") == 130
    assert [line["prompt"] for line in manifest()] == ["a", "b"]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path("made").glob("*.png")}
    assert len(before) == 2
    # A run may also be ended between a picture and the manifest.
    Path("made/manifest.jsonl").write_text(json.dumps(manifest()[0]) + "\n")
    capsys.readouterr()
    assert make(model, file, "--batch-size", "2") == 0
    assert calls == [[0, 1], [2, 3], [2, 3], [4, 4]]
    assert capsys.readouterr().out.split() == [f"made/000{i}.png" for i in (3, 4, 5)]
    assert [line["prompt"] for line in manifest()] == list("abcde")
    assert all((path.stat().st_mtime_ns, path.read_bytes()) == old for path, old in before.items())
    assert make(model, file) == 0  # all are made
    assert len(loaded) == 2
    assert make(model, file, "--seed", "5") == 2
    assert "made/0001.png exists, but was made with another seed; choose another --output" in capsys.readouterr().err
    assert make(model, file, "--seed", "5", "--overwrite") == 0
    assert [line["seed"] for line in manifest()] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "line 2: is not valid JSON"),
        ("[]", "line 2: is '[]'; it must be a JSON object"),
        ('{"seed": 1}', "line 2: has no prompt"),
        ('{"prompt": 5}', "line 2: has no prompt, or one that is no text"),
        ('{"prompt": "a", "height": 64}', "line 2: has 'height', which is the same for the whole file"),
        ('{"prompt": "a", "colour": 64}', "line 2: has 'colour', which is unknown"),
        ('{"prompt": "a", "guidance_scale": 1}', "line 2: --guidance-scale is 1, but that of the options is 5"),
        ('{"prompt": "a", "guidance_scale": NaN}', "line 2: --guidance-scale is nan"),
        ('{"prompt": "a", "guidance_rescale": 0.5}', "line 2: --guidance-rescale is 0.5, but that of the options is 0"),
        ('{"prompt": "a", "guidance_rescale": 2}', "line 2: --guidance-rescale is 2"),
        ('{"prompt": "a", "steps": 0}', "line 2: --steps is 0"),
        ('{"prompt": "a", "steps": "5"}', "line 2: the setting steps is '5'"),
        ('{"prompt": "a", "seed": true}', "line 2: --seed is True"),
        ('{"prompt": "a", "seed": 18446744073709551616}', "line 2: --seed is 18446744073709551616"),
        ('{"prompt": "(a:1.2.3)"}', "line 2: prompt: the prompt has ':1.2.3)' at character 3"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_loaded(
    line: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "_load", None)
    Path("prompts.jsonl").write_text(f'{{"prompt": "a"}}\n{line}\n')
    assert make("demo", "prompts.jsonl", "--prompt-syntax", "a1111") == 2
    assert f"prompts.jsonl, {message}" in capsys.readouterr().err
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "absent.txt", "--output", "made"], "absent.txt cannot be read (No such file"),
        (["--prompts", "empty.txt", "--output", "made"], "empty.txt has no prompts"),
        (["--prompts", "bytes.txt", "--output", "made"], "bytes.txt cannot be read (is not UTF-8)"),
        (["--prompts", "one.txt"], "add --output FOLDER"),
        (["a cat", "--batch-size", "2"], "--batch-size is for the pictures of a file"),
        (["a cat", "--prompts", "one.txt", "--output", "made"], "leave out the others"),
        (["--prompts", "one.txt", "--output", "made", "--batch-size", "0"], "--batch-size is 0"),
        (["--prompts", "one.txt", "--output", "file"], "file cannot be made"),
        (["--prompts", "one.txt", "--output", "foreign"], "foreign/0001.png exists, but was made with another"),
        (["--prompts", "one.txt", "--output", "strange"], "manifest.jsonl, line 1: is not from this program"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "_load", None)
    for name, content in {"one.txt": b"a", "empty.txt": b"\n \n", "bytes.txt": b"\xff\xfe", "file": b""}.items():
        Path(name).write_bytes(content)
    for folder, name in ("foreign", "0001.png"), ("strange", "manifest.jsonl"):
        Path(folder).mkdir()
        Path(folder, name).write_text("mine")
    assert run("generate", *arguments) == 2
    assert message in capsys.readouterr().err
    assert Path("foreign/0001.png").read_text() == "mine"


def test_long_prompts_are_not_filled_up_to_others(model: str, loaded: list[Any]) -> None:
    """A batch has prompts of equal length only, so that each picture is as it would be alone."""
    file = write([{"prompt": "a (red:1.3) cat"}, {"prompt": "red " * 200}, {"prompt": "dog"}])
    assert make(model, file, "--batch-size", "3", "--prompt-syntax", "a1111") == 0
    alone = StableDiffusionXLPipeline.from_pretrained(model, progress=False)
    for i, line in enumerate(manifest()):
        call = {"num_inference_steps": 2, "seed": i, "prompt_syntax": "a1111"}
        (picture,) = alone(line["prompt"], **call).images
        assert np.abs(pixels(f"made/{line['file']}").astype(int) - np.asarray(picture)).max() <= 2
    assert len(loaded[0].programs.denoise["synchronous"]._prepared) == 2


@pytest.mark.fast
def test_names_have_as_many_digits_as_the_last_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a\n" * 20000)
    requests = read_requests(file, Settings(seed=5), 1, lambda settings: None)
    assert [(requests[i].name, requests[i].settings.seed) for i in (0, -1)] == [("00001.png", 5), ("20000.png", 20004)]


def test_embeddings_and_syntax_on_the_command_line(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.RandomState(0).randn(2, 32).astype(np.float32)
    save_file({"clip_l": rows, "clip_g": rows}, "style.safetensors")
    save_file({"<toy>": rows[:1]}, "toy.safetensors")
    options = ["--embedding", "style.safetensors:mystyle", "--embedding", "toy.safetensors", "--steps", "2", "--quiet"]
    prompt = "(a <toy>:1.2) in mystyle"
    extra = ["--model", model, "--prompt-syntax", "a1111", "--seed", "1", "--output"]
    assert run("generate", prompt, *options, *extra, "one.png") == 0
    made = settings("one.png")
    assert made["embedding"] == ["style.safetensors:mystyle", "toy.safetensors"]
    assert made["prompt_syntax"] == "a1111"
    pipe = StableDiffusionXLPipeline.from_pretrained(model, progress=False)
    pipe.load_textual_inversion("style.safetensors", token="mystyle")
    pipe.load_textual_inversion("toy.safetensors")
    (expected,) = pipe(prompt, num_inference_steps=2, seed=1, prompt_syntax="a1111").images
    assert np.array_equal(pixels("one.png"), np.asarray(expected))
    assert run("generate", "--like", "one.png", "--quiet", "--output", "again.png") == 0
    assert np.array_equal(pixels("again.png"), pixels("one.png"))
    save_file({"<toy>": rows[1:]}, "toy.safetensors")
    assert run("generate", "--like", "one.png", "--output", "other.png") == 2
    assert "has changed since one.png was made with it" in capsys.readouterr().err
    assert run("generate", "x (y:1.2.3)", "--prompt-syntax", "a1111", "--model", "nowhere/x") == 2
    assert "prompt: the prompt has ':1.2.3)' at character 5" in capsys.readouterr().err
    assert run("generate", "x", "--prompt-syntax", "b", "--model", "nowhere/x") == 2
    assert "--prompt-syntax is 'b'; it must be one of plain, a1111, compel" in capsys.readouterr().err
    assert run("generate", "x", "--embedding", "absent.safetensors") == 2
    assert "absent.safetensors: there is no such file" in capsys.readouterr().err

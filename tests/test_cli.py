"""The command line: pictures and their settings, mistakes in one line, nothing overwritten or half-written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distrijax import cli

FAST = ["--steps", "2", "--quiet", "--seed", "5"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def settings(path: str | Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.info[cli.METADATA])


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_picture_can_be_made_again_from_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "a red circle", *FAST, "--guidance-scale", "3", "--scheduler", "ddim") == 0
    assert capsys.readouterr().out == "a-red-circle.png\n"
    made = settings("a-red-circle.png")
    assert made["prompt"] == "a red circle"
    assert (made["steps"], made["seed"], made["guidance_scale"], made["scheduler"]) == (2, 5, 3.0, "ddim")
    assert run("generate", "--like", "a-red-circle.png", "--quiet", "--output", "again.png") == 0
    assert np.array_equal(pixels("again.png"), pixels("a-red-circle.png"))
    assert settings("again.png") == made
    assert run("generate", "--like", "a-red-circle.png", "--quiet", "--seed", "6", "--output", "other.png") == 0
    assert settings("other.png") == made | {"seed": 6}
    assert not np.array_equal(pixels("other.png"), pixels("again.png"))


def test_several_pictures_are_numbered_and_each_has_its_own_seed() -> None:
    assert run("generate", "a red circle", "a blue square", *FAST, "--num-images", "2", "--output", "set.png") == 0
    names = [f"set-{i}.png" for i in (1, 2, 3, 4)]
    assert [(settings(n)["prompt"], settings(n)["seed"]) for n in names] == [
        ("a red circle", 5),
        ("a red circle", 6),
        ("a blue square", 5),
        ("a blue square", 6),
    ]
    # Alone, the second picture is the same but for roundings of another batch size.
    assert run("generate", "--like", "set-2.png", "--quiet", "--output", "alone.png") == 0
    assert np.abs(pixels("alone.png").astype(int) - pixels("set-2.png")).max() <= 2


def test_nothing_is_overwritten_without_being_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.png").write_bytes(b"precious")
    assert run("generate", "a red circle", *FAST, "--output", "mine.png") == 2
    assert "mine.png exists" in capsys.readouterr().err
    assert Path("mine.png").read_bytes() == b"precious"
    Path("a-red-circle.png").write_bytes(b"precious")
    assert run("generate", "a red circle", *FAST) == 0
    assert Path("a-red-circle.png").read_bytes() == b"precious"
    assert pixels("a-red-circle-2.png").shape == (256, 256, 3)
    assert run("generate", "a red circle", *FAST, "--output", "mine.png", "--overwrite") == 0
    assert pixels("mine.png").shape == (256, 256, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "there is no prompt"),
        (["generate", "x", "--output", "x.jpg"], "must end in .png"),
        (["generate", "x", "--output", "nowhere/x.png"], "no folder nowhere"),
        (["generate", "x", "--num-images", "0"], "--num-images is 0"),
        (["generate", "x", "--scheduler", "euler_a", *FAST], "euler_ancestral"),
        (["generate", "x", "--height", "100", *FAST], "height is 100; it must be a whole multiple of 8"),
        (["generate", "x", "--steps", "0"], "num_inference_steps"),
        (["generate", "x", "--model", "no/such/folder/here"], "no/such/folder/here"),
        (["generate", "--like", "absent.png"], "absent.png: there is no such picture"),
        (["convert", "absent.safetensors", "out"], "absent.safetensors"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("distrijax: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert captured.out == ""
    assert not [p for p in Path().iterdir() if p.suffix in (".png", ".partial")]


def test_pictures_without_settings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, message in (("plain.png", "carries no settings"), ("broken.png", "cannot be read as a picture")):
        assert run("generate", "--like", name) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "convert"])
def test_help_is_complete(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    parser = cli._parser()
    subparsers = next(a for a in parser._actions if isinstance(a.choices, dict))
    for action in subparsers.choices[command]._actions:
        assert action.help, action.dest
        assert all(option in text for option in action.option_strings)


def test_interrupting_writes_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from distrijax.pipelines.sdxl import StableDiffusionXLPipeline

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StableDiffusionXLPipeline, "__call__", stop)
    assert run("generate", "a red circle", *FAST) == 130
    assert capsys.readouterr().err.endswith("distrijax: interrupted\n")
    assert not list(Path().glob("*"))

"""`distrijax generate --lora`: the Python API's pictures, and settings that name the files they need."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_cli import Pipe, in_an_empty_folder, pipes, pixels, run, settings

from distrijax import StableDiffusionXLPipeline
from distrijax.demo import ADAPTERS, MODEL

__all__ = ["in_an_empty_folder", "pipes"]  # fixtures

OUTLINES = ADAPTERS / "outlines.safetensors"
SMALL = ["--height", "64", "--width", "64", "--steps", "2", "--seed", "5", "--quiet"]


def test_pictures_are_those_of_the_python_api_and_can_be_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(OUTLINES, "style.safetensors")
    both = ["--lora", "style.safetensors:0.5", "--lora", "demo:outlines:-0.25"]
    assert run("generate", "a red circle", *SMALL, *both, "--output", "first.png") == 0
    pipe = StableDiffusionXLPipeline.from_pretrained(MODEL, progress=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(OUTLINES, "a")
    pipe.set_adapters("a", 0.25)
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "seed": 5}
    expected = np.asarray(pipe("a red circle", **call).images[0])
    assert np.abs(pixels("first.png").astype(int) - expected).max() <= 1  # two adapters, summed to the same by rounding
    pipe.disable_lora()
    assert np.abs(np.asarray(pipe("a red circle", **call).images[0]).astype(int) - expected).max() > 3

    made = settings("first.png")
    digest = hashlib.sha256(OUTLINES.read_bytes()).hexdigest()
    assert made["lora"] == [
        {"file": "style.safetensors", "weight": 0.5, "sha256": digest},
        {"file": "demo:outlines", "weight": -0.25, "sha256": digest},
    ]
    assert run("generate", "--like", "first.png", "--quiet", "--output", "again.png") == 0
    assert settings("again.png") == made
    assert np.array_equal(pixels("again.png"), pixels("first.png"))

    Path("style.safetensors").write_bytes(OUTLINES.read_bytes() + b" ")
    assert run("generate", "--like", "first.png") == 2
    assert "style.safetensors has changed since first.png was made with it; " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("absent.safetensors", "absent.safetensors: there is no such file"),
        ("absent.safetensors:0.5", "absent.safetensors: there is no such file"),
        ("demo:nothing", "there is no such adapter of the demo model; there are outlines"),
        ("demo:outlines:nan", "--lora demo:outlines: the weight is nan"),
        ("style.ckpt", "is a pickle"),
        (".", "it holds no .safetensors file"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(
    option: str, message: str, pipes: list[Pipe], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "x", "--lora", option) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not pipes


def test_a_colon_may_be_part_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(OUTLINES, "a:1")
    assert run("generate", "x", *SMALL, "--lora", "a:1", "--output", "x.png") == 0
    assert [entry["weight"] for entry in settings("x.png")["lora"]] == [1.0]
    Path("a:1").unlink()
    assert run("generate", "--like", "x.png") == 2
    assert "a:1" in capsys.readouterr().err

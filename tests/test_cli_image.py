"""`distrijax generate --image`: the Python API's pictures, on any mesh, and settings that name the file they need."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import Pipe, in_an_empty_folder, pipes, pixels, run, settings

from distrijax import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline
from distrijax.cli import generate
from distrijax.demo import MODEL

__all__ = ["in_an_empty_folder", "pipes"]  # fixtures

CALL = ["--image", "photo.png", "--strength", "0.5", "--steps", "4", "--seed", "5", "--quiet"]


@pytest.fixture(autouse=True)
def photo(in_an_empty_folder: Path) -> Image.Image:
    """A smooth picture; its size is rounded down to 64 rows of 96."""
    small = Image.fromarray(np.random.RandomState(0).randint(0, 256, (5, 7, 3), np.uint8))
    image = small.resize((101, 67), Image.Resampling.BICUBIC)
    image.save("photo.png")
    return image


def test_pictures_are_those_of_the_python_api(photo: Image.Image) -> None:
    assert run("generate", "a red circle", *CALL, "--guidance-scale", "3") == 0
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(MODEL, progress=False)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 4, "seed": 5, "guidance_scale": 3.0}
    expected, other = (
        np.asarray(pipe("a red circle", image=photo, strength=strength, **call).images[0]) for strength in (0.5, 0.75)
    )
    assert np.array_equal(pixels("a-red-circle.png"), expected)
    assert not np.array_equal(other, expected)


def test_a_picture_can_be_made_again_as_long_as_its_file_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "a red circle", *CALL, "--output", "first.png") == 0
    made = settings("first.png")
    digest = hashlib.sha256(Path("photo.png").read_bytes()).hexdigest()
    assert (made["image"], made["image_sha256"], made["strength"]) == ("photo.png", digest, 0.5)
    assert (made["height"], made["width"]) == (64, 96)
    assert run("generate", "--like", "first.png", "--quiet", "--output", "again.png") == 0
    assert settings("again.png") == made
    assert np.array_equal(pixels("again.png"), pixels("first.png"))

    Path("photo.png").rename("elsewhere.png")
    assert run("generate", "--like", "first.png") == 2
    assert "first.png was made from photo.png, which is gone; say where it is with --image" in capsys.readouterr().err
    moved = ["--image", "elsewhere.png", "--output", "moved.png"]
    assert run("generate", "--like", "first.png", "--quiet", *moved) == 0
    assert settings("moved.png") == made | {"image": "elsewhere.png"}
    assert np.array_equal(pixels("moved.png"), pixels("first.png"))

    Image.new("RGB", (64, 64)).save("photo.png")
    assert run("generate", "--like", "first.png") == 2
    assert "photo.png has changed since first.png was made from it" in capsys.readouterr().err


def test_any_mesh_makes_the_pictures_of_one_device() -> None:
    """Several prompts, and two pictures of each; they differ by roundings of float32, of which some cross a level."""
    prompts = ["a red circle", "a blue square"]
    meshes = {"one": ["--mode", "full_sync"], "emulated": ["--patch", "2", "--emulate"], "auto": ["--auto"]}
    for name, mesh in meshes.items():
        several = ["--num-images", "2", "--mode", "full_sync", *mesh, "--output", f"{name}.png"]
        assert run("generate", *prompts, *CALL, *several) == 0
        for i in (1, 2, 3, 4):
            assert np.abs(pixels(f"one-{i}.png").astype(int) - pixels(f"{name}-{i}.png")).max() <= 1
    for name, shape in (("emulated", (1, 1, 2)), ("auto", (2, 2, 2))):
        made = settings(f"{name}-4.png")
        assert (made["data"], made["cfg"], made["patch"]) == shape
        assert (made["prompt"], made["seed"]) == ("a blue square", 6)
    assert not np.array_equal(pixels("one-3.png"), pixels("one-4.png"))


MASKED = [*CALL, "--mask", "mask.png"]


@pytest.fixture
def mask(in_an_empty_folder: Path) -> Image.Image:
    """A mask of another size than the picture."""
    image = Image.new("L", (50, 40))
    image.paste(255, (20, 10, 40, 30))
    image.save("mask.png")
    return image


@pytest.mark.parametrize("crop", [[], ["--padding-mask-crop", "6", "--height", "40"]], ids=str)
def test_masks(photo: Image.Image, mask: Image.Image, crop: list[str]) -> None:
    """Without a crop, the picture's size is rounded down; with one, it stays, and the options say how to paint."""
    if crop:
        mask = mask.resize(photo.size)
        mask.save("mask.png")
    assert run("generate", "a red circle", *MASKED, *crop, "--output", "first.png") == 0
    pipe = StableDiffusionXLInpaintPipeline.from_pretrained(MODEL, progress=False)
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"num_inference_steps": 4, "seed": 5, "guidance_scale": 5.0, "strength": 0.5}
    call |= {"height": 40, "padding_mask_crop": 6} if crop else {"height": 64, "width": 96}
    expected = np.asarray(pipe("a red circle", image=photo, mask_image=mask, **call).images[0])
    assert np.array_equal(pixels("first.png"), expected)
    assert expected.shape == ((67, 101, 3) if crop else (64, 96, 3))

    made = settings("first.png")
    assert (made["mask"], made["mask_sha256"]) == (
        "mask.png",
        hashlib.sha256(Path("mask.png").read_bytes()).hexdigest(),
    )
    assert (made["height"], made["width"]) == ((40, None) if crop else (64, 96))
    assert run("generate", "--like", "first.png", "--quiet", "--output", "again.png") == 0
    assert settings("again.png") == made
    assert np.array_equal(pixels("again.png"), expected)


def test_a_mask_must_be_the_one_that_was_used(
    mask: Image.Image, pipes: list[Pipe], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "x", "--image", "photo.png", "--mask", "mask.png", "--output", "first.png") == 0
    assert pipes[0].calls[0]["strength"] == 0.9999
    Image.new("L", (64, 64)).save("mask.png")
    assert run("generate", "--like", "first.png") == 2
    assert "mask.png has changed since first.png was made from it" in capsys.readouterr().err
    assert run("generate", "--like", "first.png", "--mask", "mask.png", "--output", "second.png") == 0


def test_traffic_is_that_of_the_pictures_size(pipes: list[Pipe], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(generate, "count_traffic", lambda *_, **options: calls.append(options))
    assert run("generate", "x", "--image", "photo.png", "--verbose") == 0
    assert (calls[0]["height"], calls[0]["width"]) == (8, 12)


def test_photos_are_turned_upright(pipes: list[Pipe]) -> None:
    """Cameras store pictures lying on their side, and note how to turn them."""
    image = Image.new("RGB", (96, 64))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise
    image.save("photo.jpg", exif=exif)
    assert run("generate", "x", "--image", "photo.jpg") == 0
    assert pipes[0].calls[0]["image"].size == (64, 96)


def test_the_settings_of_a_picture_made_from_text_can_be_used_for_another(pipes: list[Pipe]) -> None:
    """Its size is left out; strength has the pipeline's default."""
    assert run("generate", "x", "--height", "64", "--width", "64", "--steps", "7") == 0
    assert run("generate", "--like", "x.png", "--image", "photo.png") == 0
    call = pipes[1].calls[0]
    assert {"height", "width"}.isdisjoint(call)
    assert (call["strength"], call["num_inference_steps"]) == (0.3, 7)
    assert settings("x-2.png")["strength"] == 0.3
    assert run("generate", "--like", "x-2.png", "--strength", "0.8") == 0
    assert pipes[2].calls[0]["strength"] == 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "absent.png"], "absent.png: there is no such picture"),
        (["--image", "."], ".: cannot be read as a picture (Is a directory)"),
        (["--image", "notes.txt"], "notes.txt: cannot be read as a picture; its format is unknown"),
        (["--image", "cut.png"], "cut.png: cannot be read as a picture ("),
        (["--strength", "0.5"], "--strength says how much to change a picture, but there is none; add --image"),
        (["--mask", "photo.png"], "--mask says where to change a picture, but there is none; add --image"),
        (["--image", "photo.png", "--padding-mask-crop", "4"], "but there is none; add --mask"),
        (["--padding-mask-crop", "4"], "but there is none; add --mask"),
        (["--image", "photo.png", "--mask", "absent.png"], "absent.png: there is no such picture"),
        (["--image", "photo.png", "--mask", "photo.png", "--padding-mask-crop", "-1"], "--padding-mask-crop is -1"),
        (["--image", "photo.png", "--height", "64"], "the size is that of the picture; leave out --height, or resize"),
        (["--image", "photo.png", "--height", "64", "--width", "64"], "leave out --height and --width, or resize"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(
    options: list[str], message: str, pipes: list[Pipe], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").write_text("no picture")
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:-3000])
    assert run("generate", "x", *options) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("distrijax: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not pipes


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--strength", "1.5"], "strength is 1.5"), (["--strength", "0.1", "--steps", "4"], "strength is 0.1 of 4 steps")],
)
def test_strengths_that_cannot_be_used(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "x", "--image", "photo.png", "--quiet", *options) == 2
    assert message in capsys.readouterr().err
    assert not Path("x.png").exists()

"""Large pictures from small ones: enlarged, then image to image at the large size."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from parallel_helpers import relative
from PIL import Image
from test_previews import call, unet
from test_two_pipelines import pipeline

from distrijax import DistrijaxError, Parallel, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from distrijax.cli import main
from distrijax.cli.pictures import read_settings


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    return pipeline(unet(), Parallel())


def small() -> np.ndarray:
    """A bright picture, which must not be taken for one in [-1, 1] when it is enlarged."""
    return np.random.RandomState(0).uniform(0.6, 1, (1, 12, 16, 3)).astype(np.float32)


def options(**others: Any) -> dict[str, Any]:
    return {name: x for name, x in call().items() if name not in ("height", "width")} | others


def test_it_is_image_to_image_of_the_enlarged_picture(pipe: StableDiffusionXLPipeline) -> None:
    planes = [Image.fromarray(plane) for plane in (2 * small()[0] - 1).transpose(2, 0, 1)]
    large = np.stack([np.asarray(plane.resize((24, 18), Image.Resampling.LANCZOS)) for plane in planes], -1)[None]
    images = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    expected = images(image=np.clip(large / 2 + 0.5, 0, 1), strength=0.5, **options()).images
    ours = pipe.upscale(small(), 1.5, strength=0.5, **options()).images
    assert ours.shape == (1, 4, 9, 12)
    np.testing.assert_array_equal(ours, expected)


def test_latents_are_enlarged(pipe: StableDiffusionXLPipeline) -> None:
    """From a picture's latents, or from those that are given, which may be four wide."""
    flat = np.full((1, 4, 6, 4), 0.7, np.float32)
    images = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    expected = images(image=jnp.full((1, 4, 12, 8), 0.7), strength=0.5, **options()).images
    ours = pipe.upscale(jnp.asarray(flat), 2, method="latent", strength=0.5, **options()).images
    assert relative(ours, expected) < 1e-5  # the same values, but for the weights of a mean
    of_picture = pipe.upscale(small(), 2, method="latent", strength=0.5, **options()).images
    assert of_picture.shape == (1, 4, 12, 16)
    pixels = pipe.upscale(small(), 2, strength=0.5, **options()).images
    assert relative(of_picture, pixels) > 0.01


def test_a_higher_strength_keeps_less(pipe: StableDiffusionXLPipeline) -> None:
    """0.35 by default: one of these four steps."""
    weak, default, strong = (
        np.asarray(pipe.upscale(small(), 2, **options(**more)).images)
        for more in ({"strength": 0.49}, {}, {"strength": 0.9})
    )
    np.testing.assert_array_equal(weak, default)
    assert relative(strong, default) > 0.1


def test_on_several_devices(pipe: StableDiffusionXLPipeline) -> None:
    whole = pipe.upscale(small(), 1.5, strength=0.9, **options()).images
    spread = StableDiffusionXLPipeline.from_pipe(pipe, parallel=Parallel(patch=3, mode="full_sync", emulate=True))
    spread.set_progress_bar_config(disable=True)
    assert relative(spread.upscale(small(), 1.5, strength=0.9, **options()).images, whole) < 1e-4


@pytest.mark.parametrize(
    ("image", "more", "message"),
    [
        (small(), {"factor": 0.5}, "factor is 0.5"),
        (small(), {"factor": float("nan")}, "factor is nan"),
        (small(), {"factor": "2"}, "factor is '2'"),
        (small(), {"method": "magic"}, "method is 'magic'"),
        (small(), {"strength": 1.5}, "strength is 1.5"),
        (jnp.zeros((1, 4, 6, 8)), {}, "image is latents, which method 'lanczos' cannot enlarge"),
        (None, {}, "image"),
    ],
)
def test_bad_arguments(pipe: StableDiffusionXLPipeline, image: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(DistrijaxError, match=message):
        pipe.upscale(image, **options(**more))


def test_command_line(tmp_path: Path) -> None:
    """Drawn small and enlarged; a picture that is there, enlarged; and the same again from its settings."""
    first, again, photo = (tmp_path / f"{name}.png" for name in ("first", "again", "photo"))
    size = ["--height", "32", "--width", "48", "--steps", "3", "--seed", "1"]
    assert main(["generate", "a red circle", "--output", str(first), *size, "--upscale", "2"]) == 0
    settings = read_settings(first)
    assert (settings.height, settings.width, settings.upscale, settings.strength) == (32, 48, 2.0, 0.35)
    assert main(["generate", "--like", str(first), "--output", str(again)]) == 0
    with Image.open(first) as one, Image.open(again) as two:
        assert one.size == (96, 64)
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
        two.resize((48, 32)).save(again)
    given = ["--image", str(again), "--upscale", "2", "--upscale-method", "latent", "--steps", "3", "--strength", "0.4"]
    assert main(["generate", "a red circle", "--output", str(photo), *given]) == 0
    with Image.open(photo) as image:
        assert image.size == (96, 64)


def test_a_refiner_on_the_command_line(tmp_path: Path) -> None:
    """The demo model refines itself: with one scheduler for both, that is hardly more than the picture itself."""
    base = ["generate", "a red circle", "--height", "32", "--width", "48", "--steps", "4", "--seed", "1"]
    names = [tmp_path / f"{name}.png" for name in ("plain", "refined", "again")]
    refine = ["--refiner", "demo", "--switch-at", "0.5", "--offload"]
    assert main([*base, "--output", str(names[0])]) == 0
    assert main([*base, "--output", str(names[1]), *refine, "--scheduler", "euler"]) == 0
    assert main(["generate", "--like", str(names[1]), "--output", str(names[2])]) == 0
    settings = read_settings(names[1])
    assert (settings.refiner, settings.switch_at) == ("demo", 0.5)
    plain, refined, again = (np.asarray(Image.open(name)).astype(int) for name in names)
    np.testing.assert_array_equal(refined, again)
    assert plain.shape == refined.shape


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--upscale", "9"], "--upscale is 9"),
        (["--upscale-method", "latent"], "add --upscale 2"),
        (["--upscale", "2", "--upscale-method", "magic"], "--upscale-method is 'magic'"),
        (["--switch-at", "0.5"], "add --refiner"),
        (["--offload"], "add --refiner"),
        (["--refiner", "demo", "--switch-at", "1.5"], "--switch-at is 1.5"),
    ],
)
def test_bad_options(given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["generate", "a red circle", "--output", str(tmp_path / "a.png"), *given]) != 0
    assert message in capsys.readouterr().err

"""Image to image against diffusers' own pipeline on torch: same checkpoint, picture, seed and strength, same result."""

import functools
import warnings
from pathlib import Path
from typing import Any

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from test_pipeline import BETAS, CHECKPOINTS, LEVELS, PROMPT, SCHEDULERS, generators, write_pipeline

from distrijax import (
    DistrijaxError,
    Parallel,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    scheduler_from_config,
)
from distrijax.pipelines import make, stages
from distrijax.sampling.noise import TorchGenerator

Pair = tuple[StableDiffusionXLImg2ImgPipeline, Any]


@functools.cache
def photo(width: int = 64, height: int = 64, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth picture with some structure; odd sizes are cut by the pipelines."""
    rng = np.random.RandomState(seed)
    small = Image.fromarray(rng.randint(0, 256, (5, 7, len(mode.replace("L", "x"))), np.uint8).squeeze(), mode)
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("img2img") / "base"
    write_pipeline(folder, **CHECKPOINTS["base"])
    return load(folder)


def load(folder: Path) -> Pair:
    ours = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, progress=False)
    theirs = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, add_watermarker=False)
    ours.set_progress_bar_config(disable=True)
    theirs.set_progress_bar_config(disable=True)
    return ours, theirs


def compare(
    pair: Pair, scheduler: str = "euler", *, seed: Any = 7, image: Any = None, their_image: Any = None, **call: Any
) -> None:
    ours, theirs = pair
    config = BETAS | SCHEDULERS[scheduler]
    ours.scheduler = scheduler_from_config(config)
    options = {name: value for name, value in config.items() if name != "_class_name"}
    theirs.scheduler = getattr(diffusers, config["_class_name"]).from_config(options)
    image = photo() if image is None else image
    call = {"prompt": PROMPT, "num_inference_steps": 8, "strength": 0.5, "output_type": "np"} | call
    images = ours(image=image, seed=seed, **call).images
    expected = theirs(image=image if their_image is None else their_image, generator=generators(seed), **call).images
    expected = expected.numpy() if isinstance(expected, torch.Tensor) else expected
    assert expected.std() > 0.03, "the reference's picture is flat: it would hide any difference"
    assert images.shape == expected.shape
    assert np.abs(images - expected).max() <= LEVELS


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(pair: Pair, name: str) -> None:
    eta = {"eta": 0.5} if name in ("ddim", "tcd") else {}
    # LCM and TCD choose their steps from those that they were distilled on.
    compare(pair, name, **eta)


# int(10 * 0.29) is 2: strength is cut to whole steps, not rounded.
@pytest.mark.parametrize(("strength", "steps"), [(0.3, 10), (0.7, 10), (0.29, 10), (1.0, 4), (0.13, 8)])
def test_strengths(pair: Pair, strength: float, steps: int) -> None:
    compare(pair, "dpm++ karras", strength=strength, num_inference_steps=steps)


@pytest.mark.parametrize("size", [(64, 64), (67, 41), (71, 90)])
def test_sizes_are_rounded_down(pair: Pair, size: tuple[int, int]) -> None:
    compare(pair, image=photo(*size))


def test_arrays_and_tensors(pair: Pair) -> None:
    """diffusers scales arrays by nearest neighbour, and takes values below zero as scaled already."""
    array = np.asarray(photo(45, 67), np.float32) / 255
    tensor = torch.from_numpy(array.transpose(2, 0, 1)[None])
    compare(pair, image=array[None], their_image=array[None])
    compare(pair, image=array, their_image=array[None])
    compare(pair, image=tensor)
    compare(pair, image=jnp.asarray(tensor.numpy()), their_image=tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers says that this is deprecated
        compare(pair, image=2 * tensor - 1)


@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_other_modes_are_converted(pair: Pair, mode: str) -> None:
    """diffusers takes four channels for latents, and fails on one; so it gets the converted picture."""
    image = photo(mode=mode)
    compare(pair, image=image, their_image=image.convert("RGB"))


def test_latents_as_image(pair: Pair) -> None:
    """Nothing is encoded, so the generator draws only the noise that is added."""
    latents = np.random.RandomState(1).randn(1, 4, 10, 12).astype(np.float32)
    compare(pair, image=latents, their_image=torch.from_numpy(latents))


def test_latents_to_begin_with(pair: Pair) -> None:
    """They are used as they are: no noise is added, and the image does not matter."""
    latents = np.random.RandomState(1).randn(1, 4, 32, 32).astype(np.float32)
    ours, theirs = pair
    compare(pair)  # both have the same scheduler now
    call = {"prompt": PROMPT, "num_inference_steps": 8, "strength": 0.5, "output_type": "np"}
    images = ours(latents=latents, **call).images
    expected = theirs(image=photo(), latents=torch.from_numpy(latents), **call).images
    assert np.abs(images - expected).max() <= LEVELS


BATCHES: dict[str, dict[str, Any]] = {
    "one image, two prompts": {"prompt": [PROMPT, "a blue square"]},
    "two images, two prompts, two of each": {
        "prompt": [PROMPT, "a blue square"], "image": [photo(), photo(seed=1)], "num_images_per_prompt": 2,
    },
    "a seed for each": {"prompt": [PROMPT, "a blue square"], "seed": [3, 4]},
    "a seed for each, two images": {
        "prompt": [PROMPT, "a blue square"], "image": [photo(), photo(seed=1)], "num_images_per_prompt": 2,
        "seed": [3, 4, 5, 6],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_batches(pair: Pair, name: str) -> None:
    """The order of draws: the images' noise, the noise that is added, that of the steps."""
    compare(pair, "euler ancestral", **BATCHES[name])


CALLS: dict[str, dict[str, Any]] = {
    "negative prompt": {"negative_prompt": "blue", "guidance_rescale": 0.7},
    "without guidance": {"guidance_scale": 1.0},
    "micro-conditioning": {
        "original_size": (40, 56), "crops_coords_top_left": (3, 5), "target_size": (64, 32),
        "negative_original_size": (12, 14), "negative_crops_coords_top_left": (1, 2),
    },
    "the end of the schedule": {"denoising_start": 0.6, "strength": 0.2},
    "to the middle": {"strength": 0.9, "denoising_end": 0.7},
    "custom timesteps": {"timesteps": [900, 700, 500, 300, 100, 1], "num_inference_steps": 50},
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls(pair: Pair, name: str) -> None:
    compare(pair, **CALLS[name])


def test_base_and_refiner_share_a_schedule(pair: Pair) -> None:
    """One pipeline stops where the other goes on: together they take every step once, as a whole run does."""
    images, _ = pair
    text = StableDiffusionXLPipeline.from_pipe(images)
    text.scheduler = images.scheduler = scheduler_from_config(BETAS | SCHEDULERS["ddim"])
    call = {"prompt": PROMPT, "num_inference_steps": 8, "output_type": "latent"}
    whole = text(**call, seed=2).images
    half = text(**call, seed=2, denoising_end=0.5).images
    rest = images(**call, image=np.asarray(half), denoising_start=0.5).images
    assert np.abs(half - whole).max() > 0.1 * np.std(whole)
    np.testing.assert_allclose(rest, whole, atol=1e-5 * float(np.std(whole)))


def test_parts_are_shared() -> None:
    """`from_pipe` loads nothing and compiles nothing again."""
    from distrijax.demo import MODEL

    text = StableDiffusionXLPipeline.from_pretrained(MODEL, progress=False)
    images = StableDiffusionXLImg2ImgPipeline.from_pipe(text)
    assert images.programs is text.programs
    assert images.parallel is text.parallel
    assert all(getattr(images, name) is part for name, part in text.components.items())


@pytest.mark.parametrize(
    "choices",
    [
        {"patch": 3, "mode": "full_sync", "emulate": True},
        {"cfg": 2, "patch": 2, "mode": "full_sync"},
        {"data": 2, "patch": 2, "mode": "full_sync"},
    ],
    ids=str,
)
def test_any_mesh_makes_the_picture_of_one_device(pair: Pair, choices: dict[str, Any]) -> None:
    """Latents differ by rounding alone: 1e-6 a step, grown by a U-Net of random weights."""
    ours, _ = pair
    ours.scheduler = scheduler_from_config(BETAS | SCHEDULERS["euler ancestral"])
    call = {"prompt": [PROMPT, "blue"], "image": photo(70, 50), "num_inference_steps": 6, "seed": 1}
    latents = {}
    for parallel in (Parallel(), Parallel(**choices)):
        pipe = StableDiffusionXLImg2ImgPipeline.from_pipe(ours, parallel=parallel)
        latents[parallel] = np.asarray(pipe(**call, strength=0.7, output_type="latent").images)
    one, several = latents.values()
    assert one.shape == (2, 4, 25, 35)
    assert np.abs(several - one).max() < 1e-4 * one.std()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"image": None}, "there is no image"),
        ({"image": []}, "empty list"),
        ({"image": "photo.png"}, "image is 'photo.png'"),
        ({"image": [photo(), np.zeros((64, 64, 3), np.float32)]}, "mixes PIL images with arrays"),
        ({"image": np.zeros((1, 64, 64, 2), np.float32)}, "2 channels"),
        ({"image": np.zeros((64,), np.float32)}, r"shape \[64\]"),
        ({"image": photo(1, 40)}, "at least 2x2"),
        ({"image": [photo(), photo()]}, "2 images cannot be repeated to 1 pictures"),
        ({"strength": 1.1}, "strength is 1.1"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": 0.1}, "strength is 0.1 of 4 steps"),
        ({"strength": 0}, "leaves none"),
        ({"denoising_start": 1}, "denoising_start is 1;"),
        ({"denoising_start": 0.5, "denoising_end": 0.4}, "must come after the start"),
        ({"latents": np.zeros((2, 4, 8, 8), np.float32)}, r"latents have the shape \(2, 4, 8, 8\)"),
        ({"output_type": "pt"}, "torch.from_numpy"),
    ],
)
def test_bad_arguments(pair: Pair, call: dict[str, Any], message: str) -> None:
    ours, _ = pair
    with pytest.raises(DistrijaxError, match=message):
        ours(**({"prompt": PROMPT, "image": photo(), "num_inference_steps": 4} | call))


@pytest.mark.parametrize("scheduler", ["euler ancestral", "dpm++ sde"])
def test_draws_in_half_precision(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    """torch draws other numbers in bfloat16 if their count is no multiple of 16: here 9 x 11 x 4, 12 more than one."""
    folder = tmp_path_factory.mktemp("half") / "base"
    write_pipeline(folder, **CHECKPOINTS["base"])
    ours = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, dtype=jnp.bfloat16, progress=False)
    theirs = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(
        folder, add_watermarker=False, torch_dtype=torch.bfloat16
    )
    drawn: dict[str, list[np.ndarray]] = {"ours": [], "theirs": []}
    draw, their_draw = TorchGenerator.randn, torch.randn

    def randn(self: TorchGenerator, *args: Any) -> np.ndarray:
        drawn["ours"].append(draw(self, *args))
        return drawn["ours"][-1]

    def their_randn(*args: Any, **options: Any) -> torch.Tensor:
        noise = their_draw(*args, **options)
        drawn["theirs"].append(noise.float().numpy())
        return noise

    def enough(*args: Any) -> None:
        raise InterruptedError  # after everything is drawn, and before the loop is compiled

    monkeypatch.setattr(make, "begin_compiling", lambda *args, **options: [])
    monkeypatch.setattr(stages, "first_inputs", enough)
    monkeypatch.setattr(TorchGenerator, "randn", randn)
    monkeypatch.setattr(torch, "randn", their_randn)
    config = BETAS | SCHEDULERS[scheduler]
    ours.scheduler = scheduler_from_config(config)
    theirs.scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    call = {"prompt": PROMPT, "image": photo(22, 18), "num_inference_steps": 4, "output_type": "latent"}
    with pytest.raises(InterruptedError):
        ours(seed=7, **call, strength=0.5)
    theirs(generator=torch.Generator().manual_seed(7), **call, strength=0.5)
    assert len(drawn["ours"]) == len(drawn["theirs"]) == 4  # the picture's latents, their noise, and two steps
    for mine, other in zip(drawn["ours"], drawn["theirs"], strict=True):
        assert mine.shape == other.shape == (1, 4, 9, 11)
        assert np.abs(mine.astype(np.float32) - other).max() <= 2**-7  # a unit in the last place of numbers around 2

"""Previews: what a step predicts without noise, as callbacks see it, through a small autoencoder or the VAE."""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from parallel_helpers import SMALLER, relative, with_random_weights
from PIL import Image
from test_two_pipelines import pipeline

from distrijax import (
    AutoencoderTiny,
    AutoencoderTinyConfig,
    DistrijaxError,
    Parallel,
    StableDiffusionXLPipeline,
    StepCallback,
    UNet,
    UNetConfig,
    scheduler_from_config,
)
from distrijax.cli import main
from distrijax.schedulers import SCHEDULERS

TINY = {"encoder_block_out_channels": [4, 4], "decoder_block_out_channels": [4, 4]}
TINY |= {"num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1]}
SHARED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
STEPS = 4


@cache
def unet() -> UNet:
    return with_random_weights(UNet, UNetConfig.from_json(SMALLER))


@cache
def tiny() -> AutoencoderTiny:
    return with_random_weights(AutoencoderTiny, AutoencoderTinyConfig.from_json(TINY))


@cache
def pipe_of(parallel: Parallel) -> StableDiffusionXLPipeline:
    pipe = pipeline(unet(), parallel)
    pipe.preview = tiny()
    return pipe


def call() -> dict[str, Any]:
    rng = np.random.RandomState(0)
    names = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
    shapes = (1, 5, 12), (1, 5, 12), (1, 8), (1, 8)
    embeds = {n: rng.randn(*shape).astype(np.float32) for n, shape in zip(names, shapes, strict=True)}
    return embeds | {"num_inference_steps": STEPS, "height": 36, "width": 16, "seed": 1, "output_type": "latent"}


def seen_by(pipe: StableDiffusionXLPipeline, *names: str, **options: Any) -> list[dict[str, np.ndarray]]:
    seen = []

    def look(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        seen.append({"step": step, "timestep": timestep} | {name: np.asarray(x) for name, x in tensors.items()})

    pipe(**call() | options, callback_on_step_end=StepCallback(look, names, options.pop("every", 1)))
    return seen


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("EulerDiscreteScheduler", "v_prediction"),
        ("DDIMScheduler", "epsilon"),
        ("DPMSolverMultistepScheduler", "v_prediction"),
    ],
)
def test_clean_latents(name: str, prediction: str) -> None:
    """The last step of each of these schedulers ends at what it predicts; so its clean latents are the picture's."""
    pipe = pipe_of(Parallel())
    before = pipe.scheduler
    pipe.scheduler = scheduler_from_config(
        SHARED | {"_class_name": name, "prediction_type": prediction, "set_alpha_to_one": True, "steps_offset": 0}
    )
    seen = seen_by(pipe, "latents", "pred_original_sample")
    pipe.scheduler = before
    last = seen[-1]
    assert relative(last["pred_original_sample"], last["latents"]) < 1e-5
    assert relative(seen[0]["pred_original_sample"], seen[0]["latents"]) > 0.1, "noise is gone from the first, too"


def test_euler_steps_towards_them() -> None:
    """Euler's step is x + (x - x0) / sigma * (next - sigma): of two latents and the noise levels, x0 follows."""
    pipe = pipe_of(Parallel())
    seen = seen_by(pipe, "latents", "pred_original_sample")
    sigma = pipe.scheduler.schedule(STEPS).noise_level
    for i in range(1, STEPS - 1):
        x, after = seen[i - 1]["latents"], seen[i]["latents"]
        x0 = x - (after - x) * sigma[i] / (sigma[i + 1] - sigma[i])
        assert relative(seen[i]["pred_original_sample"], x0) < 1e-4  # the difference of latents cancels


def test_previews_are_decoded_by_the_small_model() -> None:
    pipe = pipe_of(Parallel())
    seen = seen_by(pipe, "preview", "pred_original_sample")
    assert [s["step"] for s in seen] == list(range(STEPS))
    for s in seen:
        assert s["preview"].shape == (1, 36, 16, 3)
        expected = jax.jit(lambda m, x: m.decode(x))(tiny(), s["pred_original_sample"].transpose(0, 2, 3, 1))
        np.testing.assert_allclose(s["preview"], np.clip(expected / 2 + 0.5, 0, 1), atol=1e-5)
    pipe.preview = None
    by_vae = seen_by(pipe, "preview")
    pipe.preview = tiny()
    assert np.abs(by_vae[-1]["preview"] - seen[-1]["preview"]).max() > 0.1


@pytest.mark.parametrize(
    "parallel", [Parallel(patch=3, cfg=2, mode="full_sync", emulate=True), Parallel(patch=2, mode="full_sync")]
)
def test_previews_on_several_devices(parallel: Parallel) -> None:
    """18 rows of latents, in multiples of two on three devices: the last have padding."""
    one, several = (seen_by(pipe_of(p), "preview") for p in (Parallel(), parallel))
    for a, b in zip(one, several, strict=True):
        assert relative(b["preview"], a["preview"]) < 1e-4  # random weights amplify rounding over four steps


def test_every_few_steps_and_pictures_stay_the_same() -> None:
    pipe, plain = pipe_of(Parallel()), call() | {"num_inference_steps": 7}
    expected = np.asarray(pipe(**plain).images)
    steps = []

    def note(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        steps.append(step)

    for every, turns in ((3, [2, 5]), (7, [6]), (8, [])):
        steps.clear()
        images = pipe(**plain, callback_on_step_end=StepCallback(note, ("preview",), every)).images
        assert steps == turns
        np.testing.assert_array_equal(images, expected)


def test_changed_values_compile_nothing() -> None:
    pipe = pipe_of(Parallel())
    seen_by(pipe, "preview")
    waited = [len(p._prepared) for p in pipe.programs.all]
    pipe.preview = jax.tree.map(lambda x: 0.5 * x, tiny())
    seen_by(pipe, "preview", seed=5)
    pipe.preview = tiny()
    assert [len(p._prepared) for p in pipe.programs.all] == waited


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (StepCallback(print, ("previews",)), "has previews; it may have latents"),
        (StepCallback(print, ("preview",), 0), "every is 0"),
        (StepCallback(print, ("preview",), 2.5), "every is 2.5"),  # type: ignore[arg-type]
        (StepCallback(lambda *_: {"preview": 1}, ("preview",)), "returned preview; it may return latents"),
        (3, "callback_on_step_end is 3; it must be a function"),
    ],
)
def test_bad_callbacks(callback: Any, message: str) -> None:
    with pytest.raises(DistrijaxError, match=message):
        pipe_of(Parallel())(**call(), callback_on_step_end=callback)


def test_bad_preview_model() -> None:
    with pytest.raises(DistrijaxError, match="preview is 3"):
        pipe_of(Parallel()).preview = 3  # type: ignore[assignment]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "cat.png"
    size = ["--height", "64", "--width", "96", "--steps", "3", "--seed", "1"]
    main(["generate", "a red circle", "--output", str(target), *size, "--preview-every", "2"])
    streams = capsys.readouterr()
    assert f"preview: {tmp_path / 'cat.preview.png'}" in streams.err
    assert streams.out.split() == [str(target)]
    with Image.open(tmp_path / "cat.preview.png") as preview:
        assert preview.size == (96, 64)
        assert np.asarray(preview).std() > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.png", "cat.preview.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preview-every", "0"], "--preview-every is 0"),
        (["--preview-every", "9", "--steps", "8"], "--preview-every is 9"),
        (["--preview", "taesdxl"], "add --preview-every 5"),
    ],
)
def test_bad_options(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["generate", "a red circle", "--output", str(tmp_path / "a.png"), *options]) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_is_left_without_the_noise(name: str) -> None:
    """A prediction that is right gives the clean latents, in every evaluation of every scheduler."""
    scheduler = scheduler_from_config({}, name)
    schedule = scheduler.schedule(10)
    rng = np.random.RandomState(0)
    clean, noise = rng.randn(2, 5)
    factors = scheduler.denoised_factors(schedule)
    for row, (signal, level) in enumerate(zip(schedule.signal, schedule.noise_level, strict=True)):
        latents, prediction = signal * clean + level * noise, noise
        if name.startswith("edm"):  # equation 7 of arXiv 2206.00364, with data of deviation 0.5
            prediction = (clean - 0.25 / (level**2 + 0.25) * latents) / (0.5 * level / np.hypot(level, 0.5))
        found = factors["denoised_sample"][row] * latents + factors["denoised_prediction"][row] * prediction
        np.testing.assert_allclose(found, clean, atol=2e-4)  # of float32 factors up to 150

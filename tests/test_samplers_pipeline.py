"""Samplers and recipes in whole pipelines against diffusers', and how steps of several evaluations are counted."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from parallel_helpers import small_pipeline
from test_image_to_image import photo
from test_pipeline import BETAS, CHECKPOINTS, LEVELS, PROMPT, generators, write_pipeline
from test_vae import PLAYGROUND

from distrijax import (
    RECIPES,
    DistrijaxError,
    Parallel,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    scheduler_from_config,
)
from distrijax.pipelines import loop
from distrijax.runtime.compile import Program

# diffusers hands tensors to NumPy in an old way
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

SDXL = BETAS | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "clip_sample": False}
SDXL |= {"set_alpha_to_one": False, "skip_prk_steps": True}

Pipelines = dict[str, tuple[Any, Any]]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Pipelines:
    """Ours and theirs of a model whose latents have a mean and deviations, and of one that takes the guidance scale."""
    loaded: Pipelines = {}
    for name, parts in CHECKPOINTS.items():
        if name == "deep":
            continue
        folder: Path = tmp_path_factory.mktemp("samplers") / name
        write_pipeline(folder, parts["unet"], parts["vae"] | (PLAYGROUND if name == "base" else {}))
        ours = StableDiffusionXLPipeline.from_pretrained(folder, progress=False)
        theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
        loaded[name] = ours, theirs
    ours, theirs = loaded["base"]
    pictures = StableDiffusionXLImg2ImgPipeline.from_pipe(ours)
    loaded["image"] = pictures, diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(theirs, add_watermarker=False)
    for pipe in (pipe for pair in loaded.values() for pipe in pair):
        pipe.set_progress_bar_config(disable=True)
    return loaded


def compare(pair: tuple[Any, Any], kind: str, options: dict[str, Any], **call: Any) -> None:
    """The same call of both, with this class made from the config of SDXL."""
    ours, theirs = pair
    ours.scheduler = scheduler_from_config(SDXL | options, kind)
    theirs.scheduler = getattr(diffusers, kind).from_config(SDXL, **options)
    check(pair, **call)


def check(pair: tuple[Any, Any], **call: Any) -> None:
    ours, theirs = pair
    call = {"prompt": PROMPT, "output_type": "np"} | call
    image = ours(seed=7, **call).images
    call = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in call.items()}
    expected = np.asarray(theirs(generator=generators(7), **call).images)
    assert expected.std() > 0.03, "the reference's picture is flat: it would hide any difference"
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= LEVELS * max(1, np.abs(expected).max())


@pytest.mark.parametrize(
    ("kind", "options", "call"),
    [
        ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, {}),
        ("HeunDiscreteScheduler", {}, {"denoising_end": 0.6, "output_type": "latent"}),
        ("KDPM2AncestralDiscreteScheduler", {}, {}),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
        ("PNDMScheduler", {}, {"denoising_end": 0.7, "output_type": "latent"}),
        ("EDMDPMSolverMultistepScheduler", {}, {}),
    ],
)
def test_text_to_image(pipelines: Pipelines, kind: str, options: dict[str, Any], call: dict[str, Any]) -> None:
    compare(pipelines["base"], kind, options, num_inference_steps=5, **call)


LATENTS = np.random.RandomState(1).randn(1, 4, 10, 12).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("HeunDiscreteScheduler", {"strength": 0.58}),  # int(10 * 0.58) is 5
        ("HeunDiscreteScheduler", {"denoising_start": 0.4, "image": LATENTS}),
        ("HeunDiscreteScheduler", {"denoising_start": 0.7, "image": LATENTS}),
        ("PNDMScheduler", {"strength": 0.3}),
        ("PNDMScheduler", {"denoising_start": 0.5, "image": LATENTS}),
        ("EDMEulerScheduler", {"strength": 0.5}),
        ("LMSDiscreteScheduler", {"strength": 0.5}),
    ],
)
def test_image_to_image(pipelines: Pipelines, kind: str, call: dict[str, Any]) -> None:
    compare(pipelines["image"], kind, {}, num_inference_steps=10, **{"image": photo()} | call)


TRAILING = {"timestep_spacing": "trailing"}
SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "turbo": ("EulerAncestralDiscreteScheduler", TRAILING, {"num_inference_steps": 1}),
    "turbo-4": ("EulerAncestralDiscreteScheduler", TRAILING, {"num_inference_steps": 4}),
    "lightning-1": ("EulerDiscreteScheduler", TRAILING | {"prediction_type": "sample"}, {"num_inference_steps": 1}),
    "lightning-2": ("EulerDiscreteScheduler", TRAILING, {"num_inference_steps": 2}),
    "lightning-4": ("EulerDiscreteScheduler", TRAILING, {"num_inference_steps": 4}),
    "lightning-8": ("EulerDiscreteScheduler", TRAILING, {"num_inference_steps": 8}),
    "lcm": ("LCMScheduler", {}, {"num_inference_steps": 4, "guidance_scale": 1.0}),
    "lcm-unet": ("LCMScheduler", {}, {"num_inference_steps": 4, "guidance_scale": 8.0}),
    "tcd": ("TCDScheduler", {}, {"num_inference_steps": 4, "eta": 0.3}),
    "hyper-1": ("LCMScheduler", {}, {"timesteps": [800]}),
    "hyper-2": ("DDIMScheduler", TRAILING, {"num_inference_steps": 2}),
    "hyper-4": ("DDIMScheduler", TRAILING, {"num_inference_steps": 4}),
    "hyper-8": ("DDIMScheduler", TRAILING, {"num_inference_steps": 8}),
    "hyper-unified": ("TCDScheduler", {}, {"num_inference_steps": 1, "eta": 1.0}),
    "hyper-cfg-8": ("DDIMScheduler", TRAILING, {"num_inference_steps": 8, "guidance_scale": 5.0}),
    "hyper-cfg-12": ("DDIMScheduler", TRAILING, {"num_inference_steps": 12, "guidance_scale": 5.0}),
    "dmd2-1": ("LCMScheduler", {}, {"timesteps": [399]}),
    "dmd2-4": ("LCMScheduler", {}, {"timesteps": [999, 749, 499, 249]}),
}
"""What the model cards say: the class and its options over SDXL's, and the call; guidance is off if nothing is said."""


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(pipelines: Pipelines, name: str) -> None:
    kind, options, call = SETTINGS[name]
    recipe, (ours, theirs) = RECIPES[name], pipelines["distilled" if name == "lcm-unet" else "base"]
    ours.scheduler = recipe.scheduler(SDXL)
    theirs.scheduler = getattr(diffusers, kind).from_config(SDXL, **options)
    image = ours(PROMPT, seed=7, output_type="np", **recipe.call).images
    call = {"guidance_scale": 0.0, **call}
    expected = theirs(PROMPT, generator=generators(7), output_type="np", **call).images
    assert expected.std() > 0.03
    assert np.abs(image - expected).max() <= LEVELS


def test_what_recipes_say_of_several_devices() -> None:
    for recipe in RECIPES.values():
        phases = Parallel(patch=2, emulate=True, warmup_steps=recipe.warmup_steps).phases(recipe.steps)
        displaced = sum(count for count, phase in phases if phase.name == "displaced")
        assert ("all synchronous" in recipe.advice) == (displaced == 0)
        assert f"{displaced} of {recipe.steps} steps are displaced" in recipe.advice or not displaced
        assert ("cfg=2" in recipe.advice) == (recipe.guidance_scale > 1)
        assert displaced >= recipe.steps // 2 or recipe.steps < 2


# ------------------------------------------------------------------------------------- steps of several evaluations

CALL: dict[str, Any] = {"prompt": "a red circle", "seed": 1, "height": 64, "width": 64, "output_type": "latent"}


def test_progress_and_warm_up_count_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Seven evaluations in four steps: two synchronous steps are four evaluations, and the bar ends at four."""
    pipe = small_pipeline()
    pipe.parallel = Parallel(patch=2, emulate=True, warmup_steps=1)
    monkeypatch.setattr(pipe, "scheduler", scheduler_from_config(pipe.scheduler.config, "heun"))
    monkeypatch.setattr(loop, "dispatch_length", lambda total, seconds: 3)
    dispatched, call = [], Program.__call__

    def counted(self: Program, *args: Any, **static: Any) -> Any:
        if self in pipe.programs.denoise.values():
            start, stop = np.asarray(args[3])
            dispatched.append((static["phase"].name, int(stop - start)))
        return call(self, *args, **static)

    monkeypatch.setattr(Program, "__call__", counted)
    pipe.set_progress_bar_config()
    try:
        images = pipe(**CALL, num_inference_steps=4).images
    finally:
        pipe.set_progress_bar_config(disable=True)
    evaluations = {name: sum(n for kind, n in dispatched if kind == name) for name, _ in dispatched}
    assert evaluations == {"synchronous": 4, "displaced": 3}
    assert "4/4" in capsys.readouterr().err
    seen: list[tuple[int, float]] = []
    again = pipe(
        **CALL, num_inference_steps=4, callback_on_step_end=lambda _, i, t, __: seen.append((i, float(t)))
    ).images
    np.testing.assert_array_equal(images, again)
    # as in diffusers, after every evaluation
    assert [i for i, _ in seen] == list(range(7))
    assert [t for _, t in seen][1::2] == [t for _, t in seen][2::2]


@pytest.mark.parametrize("name", ["heun", "dpm2_ancestral", "lms", "pndm"])
def test_patches_equal_one_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small_pipeline()
    config = {**pipe.scheduler.config, "skip_prk_steps": True}
    monkeypatch.setattr(pipe, "scheduler", scheduler_from_config(config, name))
    made = {}
    for mode, patch in (("full_sync", 1), ("full_sync", 3), ("corrected_async_gn", 3)):
        pipe.parallel = Parallel(patch=patch, emulate=patch > 1, mode=mode, warmup_steps=1)
        made[mode, patch] = np.asarray(pipe(**CALL | {"height": 80}, num_inference_steps=5).images)
    alone, exact, displaced = made.values()
    assert np.linalg.norm(exact - alone) <= 1e-5 * np.linalg.norm(alone)
    assert np.isfinite(displaced).all()
    assert np.linalg.norm(displaced - alone) < 0.5 * np.linalg.norm(alone)


def test_fractions_of_training_need_training_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small_pipeline()
    monkeypatch.setattr(pipe, "scheduler", scheduler_from_config({}, "edm_euler"))
    with pytest.raises(DistrijaxError, match=r"denoising_end is a fraction of the .*, of which EDMEuler"):
        pipe(**CALL, denoising_end=0.5)

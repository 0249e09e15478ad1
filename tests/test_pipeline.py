"""The whole pipeline against diffusers' on torch: small random checkpoints, same seed, same picture."""

import functools
from pathlib import Path
from typing import Any

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers_checkpoint import SHALLOW, TEXT, UNET, VAE, tokenizer
from reference import random_weights
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from distrijax.errors import DistrijaxError
from distrijax.pipelines.loop import dispatch_length
from distrijax.pipelines.text_to_image import StableDiffusionXLPipeline
from distrijax.schedulers import scheduler_from_config

# fp32 on both sides. A step's difference of 1e-6 grows with the steps of a random U-Net, and ends below a grey level.
LEVELS = 2 / 255
PROMPT = "a red circle"

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS = {
    "ddim": {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False},
    "ddim, v, zero snr": {
        "_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
    },
    "euler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
    "euler ancestral": {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
    "dpm++ karras": {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
    "dpm++ sde": {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
    "lcm": {"_class_name": "LCMScheduler"},
    "tcd": {"_class_name": "TCDScheduler"},
    "unipc": {"_class_name": "UniPCMultistepScheduler"},
}  # fmt: skip
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "base": {"unet": UNET | SHALLOW, "vae": VAE},
    "distilled": {"unet": UNET | {"layers_per_block": 1, "time_cond_proj_dim": 8}, "vae": VAE},
    "deep": {
        "unet": UNET
        | {
            "sample_size": 12, "block_out_channels": (16, 24, 32), "attention_head_dim": (1, 3, 4),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
            "transformer_layers_per_block": 1, "layers_per_block": 1,
        },
        "vae": VAE
        | {
            "block_out_channels": (8, 8, 16, 16), "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
        },
    },
}  # fmt: skip


def write_pipeline(folder: Path, unet: dict[str, Any], vae: dict[str, Any]) -> None:
    torch.manual_seed(0)
    parts = {
        "unet": diffusers.UNet2DConditionModel(**unet),
        "vae": diffusers.AutoencoderKL(**vae),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, hidden_act="gelu")),
    }
    parts["vae"].decoder.conv_out.weight.data *= 5  # torch's own initial weights would decode to a flat grey
    pipe = diffusers.StableDiffusionXLPipeline(
        **{name: random_weights(part) for name, part in parts.items()},
        tokenizer=tokenizer(folder / "tokenizer", "<|endoftext|>"),
        tokenizer_2=tokenizer(folder / "tokenizer_2", "!"),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def write(name: str) -> Path:
        path = tmp_path_factory.mktemp("pipeline") / name
        write_pipeline(path, **CHECKPOINTS[name])
        return path

    return write


@pytest.fixture(scope="session")
def pipelines(folder: Any) -> Any:
    @functools.cache
    def load(name: str) -> tuple[StableDiffusionXLPipeline, Any]:
        ours = StableDiffusionXLPipeline.from_pretrained(folder(name), progress=False)
        theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(folder(name))
        ours.set_progress_bar_config(disable=True)
        theirs.set_progress_bar_config(disable=True)
        return ours, theirs

    return load


def generators(seed: Any) -> Any:
    if isinstance(seed, int):
        return torch.Generator("cpu").manual_seed(seed)
    return [torch.Generator("cpu").manual_seed(s) for s in seed]


def compare(
    pair: Any, scheduler: dict[str, Any] | None = None, *, seed: Any = 7, steps: int | None = 4, **call: Any
) -> None:
    """The same call on both sides, with the checkpoint's scheduler or another class and other options."""
    ours, theirs = pair
    config = dict(theirs.scheduler.config)
    if scheduler is not None:
        options = {k: v for k, v in scheduler.items() if k != "_class_name"}
        kind = getattr(diffusers, scheduler["_class_name"])
        theirs.scheduler = kind.from_config(BETAS | options)
        ours.scheduler = scheduler_from_config(BETAS | scheduler)
    call = {"output_type": "np", "prompt": PROMPT} | ({"num_inference_steps": steps} if steps else {}) | call
    before = ours.scheduler, config
    image = ours(seed=seed, **call).images
    expected = theirs(generator=generators(seed), **call).images
    assert before[0] is ours.scheduler
    assert expected.std() > 0.05, "the reference's picture is flat: it would hide any difference"
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= LEVELS


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(pipelines: Any, name: str) -> None:
    eta = {"eta": 0.5} if name in ("ddim", "tcd") else {}
    compare(pipelines("base"), SCHEDULERS[name], **eta)


CALLS: dict[str, dict[str, Any]] = {
    "negative prompt": {"negative_prompt": "blue"},
    "two prompts and two negative ones": {
        "prompt_2": "green square", "negative_prompt": "blue", "negative_prompt_2": "grey",
    },
    "guidance rescale": {"guidance_rescale": 0.7, "guidance_scale": 9.0},
    "micro-conditioning": {"original_size": (40, 56), "crops_coords_top_left": (3, 5), "target_size": (64, 32)},
    "negative micro-conditioning": {
        "negative_original_size": (12, 14), "negative_crops_coords_top_left": (1, 2), "negative_target_size": (30, 20),
    },
    "clip skip": {"clip_skip": 0, "negative_prompt": "blue"},
    "denoising end": {"steps": 8, "denoising_end": 0.5},
    "default steps": {"steps": None, "denoising_end": 0.9},
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls(pipelines: Any, name: str) -> None:
    compare(pipelines("base"), SCHEDULERS["euler"], **CALLS[name])


def test_without_guidance(pipelines: Any) -> None:
    compare(pipelines("base"), SCHEDULERS["euler"], guidance_scale=1.0)


def test_guidance_as_an_input_of_the_unet(pipelines: Any) -> None:
    compare(pipelines("distilled"), SCHEDULERS["lcm"], guidance_scale=8.0)


def test_batches_and_seeds(pipelines: Any) -> None:
    """Two prompts, two pictures each; first one generator for all, as diffusers draws them, then one for each."""
    prompts = {"prompt": [PROMPT, "a blue square"], "negative_prompt": ["grey", "x"], "num_images_per_prompt": 2}
    compare(pipelines("base"), SCHEDULERS["euler ancestral"], **prompts)
    compare(pipelines("base"), SCHEDULERS["euler ancestral"], seed=[5, 2**31, 5, 0], **prompts)


@pytest.mark.parametrize("size", [(96, 96), (72, 120), (136, 40)])
def test_sizes(pipelines: Any, size: tuple[int, int]) -> None:
    """Three levels and a factor of 8: 9, 15, 17 and 5 rows or columns of latents are odd at one level or another."""
    compare(pipelines("deep"), SCHEDULERS["ddim"], height=size[0], width=size[1], steps=3)


def test_same_latents_and_embeddings(pipelines: Any) -> None:
    ours, theirs = pipelines("base")
    compare((ours, theirs), SCHEDULERS["euler"])
    rng = np.random.RandomState(3)
    latents = rng.randn(1, 4, 8, 8).astype(np.float32)
    embeds = {
        "prompt_embeds": rng.randn(1, 77, 64), "negative_prompt_embeds": rng.randn(1, 77, 64),
        "pooled_prompt_embeds": rng.randn(1, 32), "negative_pooled_prompt_embeds": rng.randn(1, 32),
    }  # fmt: skip
    call = {"num_inference_steps": 4, "output_type": "np"}
    image = ours(latents=latents, **{k: v.astype(np.float32) for k, v in embeds.items()}, **call).images
    torch_embeds = {k: torch.from_numpy(v.astype(np.float32)) for k, v in embeds.items()}
    expected = theirs(latents=torch.from_numpy(latents), **torch_embeds, **call).images
    assert np.abs(image - expected).max() <= LEVELS
    raw = ours(PROMPT, latents=latents, num_inference_steps=4, output_type="latent").images
    expected = theirs(
        PROMPT, latents=torch.from_numpy(latents), num_inference_steps=4, output_type="latent"
    ).images.numpy()
    np.testing.assert_allclose(raw, expected, atol=1e-4 * expected.std())


def test_custom_steps(pipelines: Any) -> None:
    compare(pipelines("base"), SCHEDULERS["euler"], steps=None, timesteps=[900, 600, 300, 1])
    compare(pipelines("base"), SCHEDULERS["euler"], steps=None, sigmas=[14.6, 5.0, 2.0, 0.5])


def test_pil_pictures(pipelines: Any) -> None:
    ours, theirs = pipelines("base")
    ours.scheduler = scheduler_from_config(
        dict(theirs.scheduler.config) | {"_class_name": theirs.scheduler.__class__.__name__}
    )
    image = ours(PROMPT, num_inference_steps=4, seed=1).images[0]
    expected = theirs(PROMPT, num_inference_steps=4, generator=generators(1)).images[0]
    assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= 2


def test_what_varies_compiles_nothing(pipelines: Any) -> None:
    ours, _ = pipelines("base")
    call: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}
    call["guidance_rescale"] = 0.7  # on or off is another program, the value is not
    first = ours(PROMPT, seed=0, **call).images
    compiled = ours.programs.seconds["compiling"]
    again = ours(PROMPT, seed=0, **call).images
    call["guidance_rescale"] = 0.3
    other = ours("blue", negative_prompt="red", seed=1, guidance_scale=2.5, original_size=(9, 9), **call)
    assert ours.programs.seconds["compiling"] == compiled
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other.images)


def test_step_callback(pipelines: Any) -> None:
    ours, theirs = pipelines("base")
    seen: dict[str, list] = {"ours": [], "theirs": []}

    def callback(log: list, pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        log.append((step, float(timestep), np.asarray(values["latents"])))
        return {"latents": values["latents"] * 0.9} if step == 1 else {}

    ours.scheduler = scheduler_from_config(BETAS | SCHEDULERS["euler"])
    theirs.scheduler = diffusers.EulerDiscreteScheduler.from_config(BETAS | SCHEDULERS["euler"])
    call = {"prompt": PROMPT, "num_inference_steps": 4, "output_type": "np"}
    image = ours(**call, seed=3, callback_on_step_end=functools.partial(callback, seen["ours"])).images
    expected = theirs(
        **call, generator=generators(3), callback_on_step_end=functools.partial(callback, seen["theirs"])
    ).images
    assert np.abs(image - expected).max() <= LEVELS
    for (step, t, latents), (their_step, their_t, theirs_latents) in zip(seen["ours"], seen["theirs"], strict=True):
        assert (step, t) == (their_step, pytest.approx(their_t))
        assert np.abs(latents - theirs_latents).max() <= 1e-3 * theirs_latents.std()


def test_interrupt(pipelines: Any) -> None:
    ours, _ = pipelines("base")
    steps = []

    def stop(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> None:
        steps.append(step)
        pipe.interrupt = step == 1

    ours(PROMPT, num_inference_steps=4, callback_on_step_end=stop, output_type="latent")
    assert steps == [0, 1]


def test_seed_is_reported(pipelines: Any) -> None:
    ours, _ = pipelines("base")
    output = ours(PROMPT, num_inference_steps=4, output_type="latent")
    assert np.array_equal(
        ours(PROMPT, num_inference_steps=4, output_type="latent", seed=output.seed).images, output.images
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"height": 33}, "height is 33; it must be a multiple of 2 pixels, such as 32 or 34"),
        ({"width": -16}, "width is -16"),
        ({"output_type": "pt"}, "output_type is 'pt'"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"denoising_end": 1.5}, "denoising_end is 1.5"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"seed": [1, 2]}, "2 seeds for 1 pictures"),
        ({"latents": np.zeros((1, 4, 3, 3), np.float32)}, r"latents have the shape \(1, 4, 3, 3\)"),
        ({"prompt": None}, "no prompt"),
        ({"original_size": (3,)}, "original_size"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
    ],
)
def test_bad_arguments(pipelines: Any, call: dict[str, Any], message: str) -> None:
    ours, _ = pipelines("base")
    with pytest.raises(DistrijaxError, match=message):
        ours(**({"prompt": PROMPT, "num_inference_steps": 4} | call))


def test_slow_steps_are_dispatched_one_by_one() -> None:
    assert [dispatch_length(50, seconds) for seconds in (0.0, 0.01, 0.3, 0.6, 5.0)] == [10, 10, 3, 1, 1]


def test_half_precision(folder: Any, pipelines: Any) -> None:
    """fp16 leaves an autoencoder that overflows there in fp32, as its config says; bf16 makes nearly the same."""
    half = StableDiffusionXLPipeline.from_pretrained(folder("base"), dtype=jnp.float16, progress=False)
    assert (half.unet.dtype, half.vae.dtype) == (jnp.float16, jnp.float32)
    with pytest.raises(DistrijaxError, match="float16 cannot be computed on a CPU"):
        half(PROMPT)
    exact, _ = pipelines("base")
    exact.scheduler = half.scheduler
    bfloat = StableDiffusionXLPipeline.from_pretrained(folder("base"), dtype=jnp.bfloat16, progress=False)
    bfloat.set_progress_bar_config(disable=True)
    call = {"prompt": PROMPT, "num_inference_steps": 4, "seed": 7, "output_type": "np"}
    difference = np.abs(bfloat(**call).images - exact(**call).images)
    # 8 bits through two networks of random weights: 1 grey level in 256 of the mean, some pixels far more.
    assert difference.mean() < 0.02

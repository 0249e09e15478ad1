"""A base model and a refiner in one call, against diffusers' two pipelines on torch."""

import warnings
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch
from helpers_checkpoint import TEXT, UNET, VAE, tokenizer
from parallel_helpers import relative
from reference import random_weights
from test_image_to_image import photo
from test_pipeline import BETAS, CHECKPOINTS, LEVELS, PROMPT, SCHEDULERS, generators, write_pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from distrijax import (
    DistrijaxError,
    Parallel,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    scheduler_from_config,
)

Pair = tuple[Any, Any]

REFINER = UNET | {  # three levels, whose rows go in fours; the base's go in pairs
    "block_out_channels": (16, 24, 32), "attention_head_dim": (1, 3, 4),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "layers_per_block": 1,
    "transformer_layers_per_block": 1, "cross_attention_dim": 32, "projection_class_embeddings_input_dim": 72,
}  # fmt: skip
SIZE = {"height": 32, "width": 24}  # 16 rows of latents: neither U-Net's multiple divides them among three devices


def write_refiner(folder: Path) -> None:
    torch.manual_seed(1)
    parts = {
        "unet": diffusers.UNet2DConditionModel(**REFINER),
        "vae": diffusers.AutoencoderKL(**VAE),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, hidden_act="gelu")),
    }
    parts["vae"].decoder.conv_out.weight.data *= 5
    diffusers.StableDiffusionXLImg2ImgPipeline(
        **{name: random_weights(part, 5) for name, part in parts.items()},
        text_encoder=None,
        tokenizer=None,
        tokenizer_2=tokenizer(folder / "tokenizer_2", "!"),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base, refiner = (tmp_path_factory.mktemp("ensemble") / name for name in ("base", "refiner"))
    write_pipeline(base, **CHECKPOINTS["base"])
    write_refiner(refiner)
    return base, refiner


@pytest.fixture(scope="module")
def ours(folders: tuple[Path, Path]) -> Pair:
    base = StableDiffusionXLPipeline.from_pretrained(folders[0], progress=False)
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(folders[1], progress=False)
    for pipe in (base, refiner):
        pipe.set_progress_bar_config(disable=True)
    return base, refiner


@pytest.fixture(scope="module")
def theirs(folders: tuple[Path, Path]) -> Pair:
    kinds = diffusers.StableDiffusionXLPipeline, diffusers.StableDiffusionXLImg2ImgPipeline
    pair = tuple(kind.from_pretrained(path, add_watermarker=False) for kind, path in zip(kinds, folders, strict=True))
    for pipe in pair:
        pipe.set_progress_bar_config(disable=True)
    return pair


def on(pair: Pair, parallel: Parallel) -> Pair:
    base, refiner = pair
    both = (
        StableDiffusionXLPipeline.from_pipe(base, parallel=parallel),
        StableDiffusionXLImg2ImgPipeline.from_pipe(refiner, parallel=parallel),
    )
    for pipe in both:
        pipe.set_progress_bar_config(disable=True)
    return both


def with_scheduler(pair: Pair, name: str) -> None:
    config = BETAS | SCHEDULERS[name]
    for pipe in pair:
        if isinstance(pipe, diffusers.DiffusionPipeline):
            options = {key: value for key, value in config.items() if key != "_class_name"}
            pipe.scheduler = getattr(diffusers, config["_class_name"]).from_config(options)
        else:
            pipe.scheduler = scheduler_from_config(config)


@pytest.mark.parametrize(
    ("scheduler", "steps", "switch_at"),
    [
        ("euler", 5, 0.8),
        ("euler ancestral", 8, 0.5),  # the refiner's noise goes on where the base's ends
        ("dpm++ karras", 8, 0.2),
    ],
)
def test_one_call_makes_what_two_calls_of_diffusers_make(
    ours: Pair, theirs: Pair, scheduler: str, steps: int, switch_at: float
) -> None:
    """Every step is taken once, by one of the two."""
    with_scheduler(ours, scheduler)
    with_scheduler(theirs, scheduler)
    base, refiner = theirs
    call: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": "blue", "num_inference_steps": steps}
    generator = generators(7)
    latents = base(**call, **SIZE, denoising_end=switch_at, output_type="latent", generator=generator).images
    options = {"denoising_start": switch_at, "output_type": "np", "generator": generator}
    expected = refiner(**call, image=latents, **options).images
    assert expected.std() > 0.05, "flat: it would hide any difference"
    seen = []

    def count(pipe: Any, step: int, *_: Any) -> None:
        seen.append(pipe is ours[1])

    base, refiner = ours
    options = {"refiner": refiner, "switch_at": switch_at, "output_type": "np", "seed": 7}
    pictures = base(**call, **SIZE, **options, callback_on_step_end=count).images
    assert len(seen) == steps
    assert seen == sorted(seen), "the refiner's steps come last"
    assert any(seen)
    assert np.abs(pictures - expected).max() <= LEVELS
    if scheduler == "euler":
        alone = base(**call, **SIZE, output_type="np", seed=7).images
        assert np.abs(pictures - alone).max() > 10 * LEVELS, "the refiner changes nothing"


def test_image_to_image_ends_with_the_refiner_too(ours: Pair, theirs: Pair) -> None:
    with_scheduler(ours, "euler")
    with_scheduler(theirs, "euler")
    call: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 8}
    begin = {"image": photo(24, 32), "strength": 0.6}
    their_base = diffusers.StableDiffusionXLImg2ImgPipeline(**theirs[0].components, add_watermarker=False)
    their_base.set_progress_bar_config(disable=True)
    latents = their_base(**call, **begin, denoising_end=0.7, output_type="latent", generator=generators(3)).images
    expected = theirs[1](**call, image=latents, denoising_start=0.7, output_type="np").images
    base = StableDiffusionXLImg2ImgPipeline.from_pipe(ours[0])
    pictures = base(**call, **begin, refiner=ours[1], switch_at=0.7, output_type="np", seed=3).images
    assert np.abs(pictures - expected).max() <= LEVELS


def test_the_refiner_alone_changes_a_picture(ours: Pair, theirs: Pair) -> None:
    """The other use of it: image to image, with scores in its time ids."""
    with_scheduler(ours, "euler")
    with_scheduler(theirs, "euler")
    call: dict[str, Any] = {"prompt": PROMPT, "image": photo(24, 32), "strength": 0.4, "num_inference_steps": 8}
    call |= {"aesthetic_score": 7.5, "negative_aesthetic_score": 1.0, "output_type": "np"}
    pictures = ours[1](**call, seed=5).images
    assert np.abs(pictures - theirs[1](**call, generator=generators(5)).images).max() <= LEVELS


CALL: dict[str, Any] = {
    "prompt": [PROMPT, "blue"],
    "num_inference_steps": 5,
    "seed": 1,
    "output_type": "latent",
    **SIZE,
}


@pytest.mark.parametrize(
    "parallel",
    [
        Parallel(patch=3, mode="full_sync", emulate=True),
        Parallel(cfg=2, patch=2, mode="full_sync"),
    ],
    ids=lambda p: f"{p.data}x{p.cfg}x{p.patch}",
)
def test_any_mesh_makes_the_picture_of_one_device(ours: Pair, parallel: Parallel) -> None:
    """16 rows: on three devices, slabs of six rows for the base and of eight for the refiner."""
    with_scheduler(ours, "euler")
    latents = []
    for pair in (ours, on(ours, parallel)):
        base, refiner = pair
        latents.append(np.asarray(base(**CALL, refiner=refiner, switch_at=0.6).images))
    assert relative(latents[1], latents[0]) < 1e-4  # 1e-6 a step, grown by U-Nets of random weights


def test_displaced_modes(ours: Pair) -> None:
    with_scheduler(ours, "euler")
    whole = np.asarray(ours[0](**CALL, refiner=ours[1], switch_at=0.6).images)
    base, refiner = on(ours, Parallel(patch=2, warmup_steps=0))
    images = np.asarray(base(**CALL, refiner=refiner, switch_at=0.6).images)
    assert np.isfinite(images).all()
    assert 1e-6 < relative(images, whole) < 1, "displaced patches differ, but not by a picture"


def test_one_u_net_at_a_time(ours: Pair) -> None:
    with_scheduler(ours, "euler")
    base, refiner = on(ours, Parallel())
    expected = np.asarray(base(**CALL, refiner=refiner).images)
    homes = []

    def look(pipe: Any, *_: Any) -> None:
        homes.append([{x.sharding.memory_kind for x in jax.tree.leaves(p.unet)} for p in (base, refiner)])

    for _ in range(2):  # again, from where the first call left the weights
        homes.clear()
        images = base(**CALL, refiner=refiner, offload=True, callback_on_step_end=look).images
        np.testing.assert_array_equal(images, expected)
        assert [{"pinned_host"} in kinds for kinds in homes] == [True] * 5
        assert homes[0] == [{"device"}, {"pinned_host"}]
        assert homes[-1] == [{"pinned_host"}, {"device"}]
    np.testing.assert_array_equal(base(**CALL, refiner=refiner).images, expected)


def test_what_varies_compiles_nothing(ours: Pair) -> None:
    with_scheduler(ours, "euler")
    base, refiner = on(ours, Parallel())
    options: dict[str, Any] = {"refiner": refiner, "output_type": "np"}
    base.compile(**CALL | options)

    def compiled() -> list[int]:
        return [len(program._prepared) for pipe in (base, refiner) for program in pipe.programs.all]

    before = compiled()
    for changes in ({}, {"switch_at": 0.6}, {"seed": 5, "guidance_scale": 3.0}, {"num_inference_steps": 7}):
        base(**CALL | options | changes)
        assert compiled() == before, changes


def test_an_interrupted_base_is_not_refined(ours: Pair) -> None:
    with_scheduler(ours, "euler")
    base, refiner = ours
    seen = []

    def stop(pipe: Any, step: int, *_: Any) -> None:
        seen.append(pipe)
        pipe.interrupt = True

    base(**CALL, refiner=refiner, callback_on_step_end=stop)
    assert seen == [base]


def test_schedulers_that_do_not_meet(ours: Pair) -> None:
    base, refiner = on(ours, Parallel())
    with_scheduler((base,), "euler")
    with_scheduler((refiner,), "dpm++ karras")
    with pytest.warns(UserWarning, match=r"noise at .* of the signal, and the refiner's goes on from"):
        base(**CALL, refiner=refiner)
    with_scheduler((refiner,), "euler")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base(**CALL, refiner=refiner)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refiner": 3}, "refiner is 3; it must be a pipeline"),
        ({"switch_at": 1.0}, "switch_at is 1.0"),
        ({"switch_at": 0}, "switch_at is 0"),
        ({"switch_at": float("nan")}, "switch_at is nan"),
        ({"switch_at": "late"}, "switch_at is 'late'"),
        ({"switch_at": None}, "switch_at is None"),
        ({"switch_at": 0.9995}, "switch_at 0.9995: denoising_start 0.9995 leaves none of 5 steps"),
        ({"switch_at": 0.8, "denoising_end": 0.7}, "the end must come after the start"),
        ({"offload": "yes"}, "offload is 'yes'"),
        ({"prompt": None, "prompt_embeds": np.zeros((1, 77, 64))}, "prompt_embeds is given, but a refiner reads"),
        ({"aesthetic_score": float("inf")}, "aesthetic_score"),
    ],
)
def test_bad_arguments(ours: Pair, options: dict[str, Any], message: str) -> None:
    with_scheduler(ours, "euler")
    base, refiner = ours
    with pytest.raises(DistrijaxError, match=message):
        base(**CALL | {"refiner": refiner} | options)


def test_other_devices(ours: Pair) -> None:
    refiner = on(ours, Parallel(patch=2))[1]
    with pytest.raises(DistrijaxError, match=r"differs in patch\); load it with parallel=pipe.parallel"):
        ours[0](**CALL, refiner=refiner)

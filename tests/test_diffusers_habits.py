"""What a user of diffusers types: generators, callbacks, saving, parts, and calls that make no sense here."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from test_pipeline import BETAS, CHECKPOINTS, LEVELS, PROMPT, SCHEDULERS, write_pipeline

from distrijax import (
    DDIMScheduler,
    DistrijaxError,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)

CALL: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 3, "output_type": "latent"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("habits") / "base"
    write_pipeline(path, **CHECKPOINTS["base"])
    return path


@pytest.fixture(scope="module")
def pipe(folder: Path) -> StableDiffusionXLPipeline:
    ours = StableDiffusionXLPipeline.from_pretrained(folder, progress=False)
    ours.set_progress_bar_config(disable=True)
    return ours


def latents(pipe: StableDiffusionXLPipeline, **call: Any) -> np.ndarray:
    return np.asarray(pipe(**CALL | call).images)


def test_generators(pipe: StableDiffusionXLPipeline) -> None:
    """A number, a torch generator (however often it was used) and a seed mean the same."""
    used = torch.Generator("cpu").manual_seed(5)
    torch.randn(3, generator=used)
    expected = latents(pipe, seed=5)
    for generator in (5, np.int64(5), torch.Generator("cpu").manual_seed(5), used):
        np.testing.assert_array_equal(latents(pipe, generator=generator), expected)
    both = latents(pipe, generator=[5, torch.Generator("cpu").manual_seed(6)], num_images_per_prompt=2)
    np.testing.assert_allclose(both[0], expected[0], atol=1e-4 * expected.std())
    assert np.abs(both[1] - both[0]).max() > 0.1
    assert pipe(**CALL, generator=used).seed == 5


def test_jax_keys(pipe: StableDiffusionXLPipeline) -> None:
    one = latents(pipe, generator=jax.random.key(0), noise="jax")
    np.testing.assert_array_equal(latents(pipe, generator=jax.random.PRNGKey(0), noise="jax"), one)
    assert np.abs(latents(pipe, generator=jax.random.key(1), noise="jax") - one).max() > 0.1
    several = jax.random.split(jax.random.key(2), 2)
    assert latents(pipe, generator=several, noise="jax", num_images_per_prompt=2).shape == (2, 4, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"generator": 1, "seed": 2}, "both generator and seed"),
        ({"generator": "7"}, "generator is '7'"),
        ({"generator": True}, "generator is True"),
        ({"generator": [1, 2]}, "2 seeds for 1 pictures"),
        ({"generator": jax.random.key(0)}, 'noise="jax"'),
        ({"generator": jax.random.split(jax.random.key(0), 3), "noise": "jax"}, "3 generators for 1 pictures"),
        ({"cross_attention_kwargs": {"gligen": {}}}, "nothing but `scale`"),
        ({"output_type": "pt"}, "torch.from_numpy"),
        ({"callback_on_step_end_tensor_inputs": ["image"]}, "has image; it may have latents, prompt_embeds"),
        ({"callback_on_step_end": lambda *_: {"image": 1}}, "returned image"),
        ({"callback_on_step_end": lambda *_: {"latents": np.zeros((1, 4, 8, 9))}}, "keep the shape"),
        ({"callback_on_step_end": lambda *_: 3}, "returned 3"),
    ],
)
def test_what_is_refused(pipe: StableDiffusionXLPipeline, call: dict[str, Any], message: str) -> None:
    with pytest.raises(DistrijaxError, match=message):
        latents(pipe, **call)


def test_return_dict(pipe: StableDiffusionXLPipeline) -> None:
    (images,) = pipe(**CALL, seed=1, return_dict=False)
    np.testing.assert_array_equal(images, latents(pipe, seed=1))


@pytest.mark.parametrize("name", ["prompt_embeds", "add_text_embeds", "add_time_ids"])
def test_a_callback_changes_the_conditioning(pipe: StableDiffusionXLPipeline, folder: Path, name: str) -> None:
    """The same change after the first step in both: they differ by far less than the change does to the picture."""
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.EulerDiscreteScheduler.from_config(BETAS | SCHEDULERS["euler"])
    pipe.scheduler = EulerDiscreteScheduler.from_config(BETAS | SCHEDULERS["euler"])
    factor = 40.0 if name == "add_time_ids" else -1.5

    def change(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert set(tensors) == {"latents", name}
        return {name: tensors[name] * factor} if step == 0 else {}

    call = {"prompt": PROMPT, "num_inference_steps": 3, "output_type": "np", "negative_prompt": "blue"}
    inputs = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents", name]}
    image = pipe(**call, **inputs, generator=3).images
    expected = theirs(**call, **inputs, generator=torch.Generator("cpu").manual_seed(3)).images
    effect = np.abs(image - pipe(**call, generator=3).images).max()
    assert effect > 5e-3
    assert np.abs(image - expected).max() <= 0.1 * effect


def test_a_callback_may_change_its_tensors_in_place(pipe: StableDiffusionXLPipeline) -> None:
    def in_place(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            tensors["prompt_embeds"] *= -1.5
        return tensors

    def returned(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": tensors["prompt_embeds"] * np.float32(-1.5)} if step == 0 else {}

    inputs = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"], "seed": 3}
    expected = latents(pipe, callback_on_step_end=returned, **inputs)
    np.testing.assert_array_equal(latents(pipe, callback_on_step_end=in_place, **inputs), expected)
    assert np.abs(expected - latents(pipe, seed=3)).max() > 1e-3


def test_schedulers_from_configs(pipe: StableDiffusionXLPipeline) -> None:
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    ddim = latents(pipe, seed=1)
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    assert pipe.scheduler.timestep_spacing == "trailing"
    assert np.abs(latents(pipe, seed=1) - ddim).max() > 0.1


def test_saving(pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    """diffusers makes the same picture of the folder, and so do we."""
    pipe.scheduler = EulerDiscreteScheduler.from_config(BETAS | SCHEDULERS["euler"])
    target = pipe.save_pretrained(tmp_path / "saved")
    expected = pipe(PROMPT, num_inference_steps=3, output_type="np", generator=2).images
    again = StableDiffusionXLPipeline.from_pretrained(target, progress=False)
    np.testing.assert_array_equal(again(PROMPT, num_inference_steps=3, output_type="np", generator=2).images, expected)
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(target, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(2)
    image = theirs(PROMPT, num_inference_steps=3, output_type="np", generator=generator).images
    assert np.abs(image - expected).max() <= LEVELS
    with pytest.raises(DistrijaxError, match="saved"):
        pipe.save_pretrained(target)


def test_parts(pipe: StableDiffusionXLPipeline, folder: Path) -> None:
    """Parts that are passed are used as they are; components make another pipeline."""
    other = StableDiffusionXLPipeline.from_pretrained(folder, unet=pipe.unet, vae=folder / "vae", progress=False)
    assert other.unet is pipe.unet
    images = StableDiffusionXLImg2ImgPipeline(**pipe.components)
    assert all(getattr(images, name) is part for name, part in pipe.components.items())
    with pytest.raises(DistrijaxError, match="not a file"):
        StableDiffusionXLPipeline.from_single_file(folder)


def test_torch_dtype(folder: Path) -> None:
    """It means the same as `dtype`, which takes torch's dtypes too."""
    for options in ({"torch_dtype": torch.bfloat16}, {"dtype": torch.bfloat16}, {"torch_dtype": jnp.bfloat16}):
        assert StableDiffusionXLPipeline.from_pretrained(folder, progress=False, **options).dtype == jnp.bfloat16
    with pytest.raises(DistrijaxError, match="both dtype and torch_dtype"):
        StableDiffusionXLPipeline.from_pretrained(folder, dtype=jnp.float32, torch_dtype=torch.bfloat16)


def test_encode_prompt(pipe: StableDiffusionXLPipeline, folder: Path) -> None:
    """The embeddings are diffusers', and a call with them makes the picture of the prompt."""
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    arguments = set(inspect.signature(theirs.encode_prompt).parameters)
    assert arguments | {"prompt_syntax"} == set(inspect.signature(pipe.encode_prompt).parameters)
    for options in (
        {"prompt": PROMPT},
        {"prompt": [PROMPT, "a"], "negative_prompt": "blue", "num_images_per_prompt": 2, "clip_skip": 1},
        {"prompt": PROMPT, "prompt_2": "b", "do_classifier_free_guidance": False},
    ):
        for ours, expected in zip(pipe.encode_prompt(**options), theirs.encode_prompt(**options), strict=True):
            assert (ours is None) == (expected is None)
            if ours is not None:
                np.testing.assert_allclose(ours, expected.detach().numpy(), atol=1e-4)
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    embeds = dict(zip(names, pipe.encode_prompt(PROMPT, negative_prompt="blue"), strict=True))
    expected = latents(pipe, seed=1, negative_prompt="blue")
    np.testing.assert_array_equal(latents(pipe, seed=1, prompt=None, **embeds), expected)


def test_what_an_output_and_a_pipeline_say(pipe: StableDiffusionXLPipeline, folder: Path) -> None:
    output = pipe(**CALL, seed=1)
    assert output[0] is output.images
    assert output["images"] is output.images
    for part in (str(folder), "float32", "patch=1", "predicted", "EulerDiscreteScheduler"):
        assert part in repr(pipe)
    assert str(folder) in repr(StableDiffusionXLImg2ImgPipeline.from_pipe(pipe))


def test_arguments_of_loading_say_what_to_pass(folder: Path) -> None:
    with pytest.raises(DistrijaxError, match="'torch_type'"):
        StableDiffusionXLPipeline.from_pretrained(folder, torch_type=torch.float16)


@pytest.mark.parametrize("method", ["to", "cuda", "enable_model_cpu_offload", "enable_vae_tiling", "set_lora_device"])
def test_calls_that_make_no_sense_say_what_to_do(pipe: StableDiffusionXLPipeline, method: str) -> None:
    with pytest.raises(DistrijaxError, match=f"{method}: "):
        getattr(pipe, method)("cuda")
    assert not hasattr(pipe, method)  # as libraries ask before they call
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipe.nothing

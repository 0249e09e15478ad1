"""Pictures of prompts with weights and several chunks, on any mesh, and what they compile."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_checkpoint import SHALLOW, base_pipeline

from distrijax import DistrijaxError, Parallel, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

LONG = "a (red cat:1.3), " * 30
CALL: dict[str, Any] = {"num_inference_steps": 3, "seed": 1, "height": 22, "width": 24, "output_type": "latent"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long")
    base_pipeline(path, **SHALLOW).save_pretrained(path / "base")
    return path / "base"


@pytest.fixture(scope="module")
def pipe(folder: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(folder, progress=False)


def test_patches_and_branches_equal_one_device(folder: Path, pipe: StableDiffusionXLPipeline) -> None:
    """Eleven rows of latents on three devices, and a negative prompt that is shorter than the prompt."""
    arguments = CALL | {"negative_prompt": "a (blue)0.5 dog+", "prompt_syntax": "compel"}
    (one,) = pipe(LONG, **arguments).images
    (plain,) = pipe(LONG, **arguments | {"prompt_syntax": "plain"}).images
    assert np.abs(one - plain).max() > 1e-3
    for parallel in Parallel(cfg=2, patch=3, mode="full_sync", emulate=True), Parallel(patch=3, warmup_steps=0):
        spread = StableDiffusionXLPipeline.from_pretrained(folder, progress=False, parallel=parallel)
        (other,) = spread(LONG, **arguments).images
        assert np.isfinite(other).all()
        if parallel.mode == "full_sync":
            assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()


def test_values_compile_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, progress=False)
    pipe.compile(LONG, **CALL, prompt_syntax="a1111")
    assert "the prompts are 3 chunks long" in capsys.readouterr().err
    for prompt, negative in (LONG, ""), ("dog BREAK [cat] BREAK x", "(x:0.5) BREAK y"), ("cat", LONG):
        pipe(prompt, negative_prompt=negative, **CALL, prompt_syntax="a1111")
    assert {name: len(program._prepared) for name, program in pipe.programs.denoise.items()}["synchronous"] == 1
    assert len(pipe.programs.encode_prompt._prepared) == 1
    pipe("cat", **CALL, prompt_syntax="a1111")
    assert len(pipe.programs.denoise["synchronous"]._prepared) == 2
    pipe("dog", **CALL)  # plain prompts have the programs of a single chunk
    assert len(pipe.programs.denoise["synchronous"]._prepared) == 2


def test_image_to_image_and_callbacks(pipe: StableDiffusionXLPipeline) -> None:
    """The pictures start from others, and a callback sees all chunks."""
    seen = []

    def end(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["prompt_embeds"].shape)
        return {}

    other = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    image = np.random.RandomState(0).rand(1, 22, 24, 3).astype(np.float32)
    call = {"image": image, "strength": 0.7, "num_inference_steps": 3, "seed": 1, "output_type": "np"}
    call |= {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    made = [other(LONG, prompt_syntax=syntax, **call).images for syntax in ("plain", "a1111")]
    assert np.abs(made[0] - made[1]).max() > 1e-3
    assert [shape[-2] for shape in seen] == [77, 77, 231, 231]


def test_embeddings_of_encode_prompt_are_arguments(pipe: StableDiffusionXLPipeline) -> None:
    texts = {"negative_prompt": "(dog:0.5)", "prompt_syntax": "a1111"}
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    embeds = dict(zip(names, pipe.encode_prompt(LONG, **texts), strict=True))
    np.testing.assert_array_equal(pipe(LONG, **texts, **CALL).images, pipe(**embeds, **CALL).images)


def test_a_syntax_that_is_unknown(pipe: StableDiffusionXLPipeline) -> None:
    with pytest.raises(DistrijaxError, match="prompt_syntax is 'A1111'; it must be one of plain, a1111, compel"):
        pipe("a", prompt_syntax="A1111")

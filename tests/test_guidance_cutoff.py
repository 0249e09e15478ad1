"""Guidance that a callback changes or ends, as in diffusers: the steps after it have one branch, and cost half."""

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import SDXLCFGCutoffCallback
from test_pipeline import CHECKPOINTS, LEVELS, PROMPT, generators, write_pipeline

from distrijax import DistrijaxError, Parallel, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from distrijax.runtime.compile import Program

CALL: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 4, "negative_prompt": "blue", "guidance_scale": 6.0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[StableDiffusionXLPipeline, Any]:
    folder = tmp_path_factory.mktemp("cutoff") / "base"
    write_pipeline(folder, **CHECKPOINTS["base"])
    ours = StableDiffusionXLPipeline.from_pretrained(folder, progress=False)
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    ours.set_progress_bar_config(disable=True)
    theirs.set_progress_bar_config(disable=True)
    return ours, theirs


@pytest.fixture
def branches(pair: tuple[StableDiffusionXLPipeline, Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of guidance branches of each dispatch."""
    counts: list[int] = []
    call = Program.__call__

    def counted(self: Program, *args: Any, **static: Any) -> Any:
        if self.name.startswith("denoising"):
            counts.append(len(args[5].weights))
        return call(self, *args, **static)

    monkeypatch.setattr(Program, "__call__", counted)
    return counts


def latents(pipe: StableDiffusionXLPipeline, **call: Any) -> np.ndarray:
    return np.asarray(pipe(**CALL | {"seed": 3, "output_type": "latent"} | call).images)


def end_after(step: int, scale: float = 0.0) -> Callable[..., dict[str, Any]]:
    """Return a callback that sets the scale and leaves the embeddings alone."""

    def callback(pipe: Any, now: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if now == step:
            pipe._guidance_scale = scale
        return {}

    return callback


def test_diffusers_own_callback(pair: tuple[StableDiffusionXLPipeline, Any], branches: list[int]) -> None:
    ours, theirs = pair
    cutoff = {"callback_on_step_end": SDXLCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)}
    made = ours(**CALL, **cutoff, seed=3, output_type="latent").images
    expected = theirs(**CALL, **cutoff, generator=generators(3), output_type="latent").images.numpy()
    assert branches == [2, 2, 1, 1]
    rounding = 1e-4 * expected.std()  # what guidance does to these weights' latents is 77 times as much
    assert np.abs(made - expected).max() <= rounding
    assert np.abs(made - ours(**CALL, seed=3, output_type="latent").images).max() > 10 * rounding


def test_every_picture_of_a_batch_keeps_its_own_prompt(pair: tuple[StableDiffusionXLPipeline, Any]) -> None:
    """diffusers' callback keeps the last picture's embeddings alone; here, each has what it would have alone."""
    ours, _ = pair
    cutoff = {"callback_on_step_end": SDXLCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)}
    both = latents(ours, prompt=[PROMPT, "a square"], negative_prompt=["blue", "red"], seed=[3, 4], **cutoff)
    for i, call in enumerate(({}, {"prompt": "a square", "negative_prompt": "red", "seed": 4})):
        alone = latents(ours, **call, **cutoff)
        assert np.abs(both[i] - alone[0]).max() < 1e-4 * alone.std()
    same = latents(ours, prompt=[PROMPT, "a square"], negative_prompt=["blue", "red"], seed=[3, 4],
                   callback_on_step_end=end_after(1))  # fmt: skip
    np.testing.assert_array_equal(same, both)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_another_scale(pair: tuple[StableDiffusionXLPipeline, Any], rescale: float, branches: list[int]) -> None:
    """Guidance becomes weaker after the first step, and ends after the third."""

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipe.num_timesteps == 4
        if step == 0:
            pipe._guidance_scale = 2.0
        if step == 2:
            pipe._guidance_scale = 1.0
            return {name: tensor[len(tensor) // 2 :] for name, tensor in tensors.items()}
        return {}

    ours, theirs = pair
    names = ["prompt_embeds", "add_text_embeds", "add_time_ids"]
    call = CALL | {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    call |= {"guidance_rescale": rescale, "output_type": "np"}
    made = ours(**call, seed=3).images
    assert branches == [2, 2, 2, 1]
    assert np.abs(made - theirs(**call, generator=generators(3)).images).max() <= LEVELS


def test_another_scale_compiles_nothing(
    pair: tuple[StableDiffusionXLPipeline, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = pair
    for scale in (3.0, 0.0):  # which ends guidance, and compiles the steps without it
        latents(ours, callback_on_step_end=end_after(1, scale))
    compiled: list[str] = []
    prepare = Program.prepare
    monkeypatch.setattr(
        Program, "prepare", lambda self, *a, **k: [compiled.append(self.name), prepare(self, *a, **k)][1]
    )
    for step, scale in ((1, 4.0), (2, 2.5), (0, 0.0), (2, 1.0)):
        latents(ours, callback_on_step_end=end_after(step, scale))
    assert compiled == []


@pytest.mark.parametrize(
    ("mode", "rescale"), [("full_sync", 0.0), ("corrected_async_gn", 0.5), ("predicted", 0.0), ("no_sync", 0.0)]
)
def test_any_mesh(pair: tuple[StableDiffusionXLPipeline, Any], mode: str, rescale: float, branches: list[int]) -> None:
    """Devices of cfg=2 hold a branch each, which then has no weight: the same picture, at the cost of before.

    The other mesh keeps from what it carries the pieces of the branch with the prompt; any others would show.
    """
    ours, _ = pair
    call = {"height": 34, "width": 20, "num_inference_steps": 5, "guidance_rescale": rescale}
    call |= {"callback_on_step_end": end_after(2)}
    made = {}
    for name, choices in {"cfg": {"cfg": 2, "patch": 2}, "patch": {"patch": 2}}.items():
        parallel = Parallel(**choices, mode=mode, warmup_steps=0)
        made[name] = latents(StableDiffusionXLPipeline.from_pipe(ours, parallel=parallel), **call)
    assert branches == [2] * 5 + [2, 2, 2, 1, 1]
    assert np.abs(made["cfg"] - made["patch"]).max() < 1e-5 * np.abs(made["patch"]).max()
    one = latents(ours, **call)
    if mode == "full_sync":
        assert np.abs(made["patch"] - one).max() < 1e-5 * np.abs(one).max()


def test_inpainting(pair: tuple[StableDiffusionXLPipeline, Any]) -> None:
    """Masks may be cut to one branch, too; diffusers needs that."""
    ours = StableDiffusionXLInpaintPipeline.from_pipe(pair[0])
    rng = np.random.RandomState(0)
    picture, mask = rng.rand(1, 16, 16, 3).astype(np.float32), (rng.rand(16, 16) < 0.5).astype(np.float32)

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe._guidance_scale = 0.0
            return {name: tensor[len(tensor) // 2 :] for name, tensor in tensors.items()}
        return {}

    names = ["prompt_embeds", "add_text_embeds", "add_time_ids", "mask"]
    call = CALL | {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names, "output_type": "np"}
    theirs = diffusers.StableDiffusionXLInpaintPipeline.from_pipe(pair[1])
    theirs.set_progress_bar_config(disable=True)
    made = ours(image=picture, mask_image=mask, **call, seed=3).images
    expected = theirs(image=picture, mask_image=torch.from_numpy(mask), **call, generator=generators(3)).images
    assert np.abs(made - expected).max() <= LEVELS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"callback_on_step_end": end_after(0, float("nan"))}, "_guidance_scale is nan"),
        ({"callback_on_step_end": end_after(0, "x")}, "_guidance_scale is 'x'"),  # type: ignore[arg-type]
        ({"callback_on_step_end": end_after(0, 5.0), "guidance_scale": 1.0}, "no branch without the prompt left"),
        ({"callback_on_step_end": lambda *_: {"add_time_ids": np.zeros((1, 6))}}, "keep the shape"),
    ],
)
def test_what_is_refused(pair: tuple[StableDiffusionXLPipeline, Any], call: dict[str, Any], message: str) -> None:
    with pytest.raises(DistrijaxError, match=message):
        latents(pair[0], **call)

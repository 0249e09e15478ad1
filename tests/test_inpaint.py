"""Inpainting against diffusers' own pipeline on torch, with U-Nets that see the mask (9 channels) or not (4)."""

import functools
from typing import Any

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from test_image_to_image import photo
from test_pipeline import BETAS, CHECKPOINTS, LEVELS, PROMPT, SCHEDULERS, generators, write_pipeline

from distrijax import (
    DistrijaxError,
    Parallel,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    scheduler_from_config,
)
from distrijax.runtime.compile import Program

HEIGHT, WIDTH = 32, 40  # 16 x 20 latents
Pair = tuple[StableDiffusionXLInpaintPipeline, Any]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Pair]:
    """Both sides' pipelines by the number of input channels."""
    made = {}
    for channels in (4, 9):
        folder = tmp_path_factory.mktemp("inpaint") / str(channels)
        base = CHECKPOINTS["base"]
        write_pipeline(folder, **base | {"unet": base["unet"] | {"in_channels": channels}})
        theirs = diffusers.StableDiffusionXLInpaintPipeline.from_pretrained(folder, add_watermarker=False)
        ours = StableDiffusionXLInpaintPipeline.from_pretrained(folder, progress=False)
        ours.set_progress_bar_config(disable=True)
        theirs.set_progress_bar_config(disable=True)
        made[channels] = ours, theirs
    return made


@functools.cache
def mask(kind: str = "rectangle", width: int = 50, height: int = 40) -> Image.Image:
    """Masks of the picture's size or another."""
    values = np.zeros((height, width), np.uint8)
    if kind == "rectangle":
        values[5:27, 8:31] = 255
    elif kind == "dots":  # one where the nearest latent looks, the others where none does
        values[[8, 9, 13], [10, 20, 30]] = 255
    elif kind == "soft":  # around the middle, where a mask turns from black to white
        values[:] = np.linspace(100, 155, width)
        values[height // 2] = 127
        values[height // 2 + 1] = 128
    elif kind == "white":
        values[:] = 255
    return Image.fromarray(values)


def compare(
    pair: Pair, scheduler: str = "euler", *, seed: Any = 7, theirs_too: dict[str, Any] | None = None, **call: Any
) -> np.ndarray:
    """Make the same call on both sides, and return our picture."""
    ours, theirs = pair
    config = BETAS | (SCHEDULERS | {"heun": {"_class_name": "HeunDiscreteScheduler"}})[scheduler]
    ours.scheduler = scheduler_from_config(config)
    options = {name: value for name, value in config.items() if name != "_class_name"}
    theirs.scheduler = getattr(diffusers, config["_class_name"]).from_config(options)
    images = {"image": photo(50, 40), "mask_image": mask(), "height": HEIGHT, "width": WIDTH}
    call = images | {"prompt": PROMPT, "num_inference_steps": 4, "strength": 0.5, "output_type": "np"} | call
    made = np.asarray(ours(seed=seed, **call).images)
    expected = theirs(generator=generators(seed), **call | (theirs_too or {})).images
    expected = expected.numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    scale = 255 if expected.dtype == np.uint8 else 1
    made, expected = made.astype(np.float32) / scale, expected.astype(np.float32) / scale
    assert expected.std() > 0.03, "the reference's picture is flat: it would hide any difference"
    assert made.shape == expected.shape
    assert np.abs(made - expected).max() <= LEVELS
    return made


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("strength", [0.5, 0.9999, 1.0])
def test_strengths(pairs: dict[int, Pair], channels: int, strength: float) -> None:
    """At 1 a run starts from noise; at diffusers' default it takes all steps but one."""
    compare(pairs[channels], strength=strength)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++ karras", "lcm", "heun"])
def test_schedulers(pairs: dict[int, Pair], scheduler: str) -> None:
    """The noise level of what is put back after each step: by the timestep, the sigma, and at each evaluation."""
    compare(pairs[4], scheduler, strength=0.8, num_inference_steps=5)


@pytest.mark.parametrize("kind", ["dots", "soft", "black", "white"])
def test_masks(pairs: dict[int, Pair], kind: str) -> None:
    for pair in pairs.values():
        compare(pair, mask_image=mask(kind), strength=0.9)
    compare(pairs[4], mask_image=mask(kind, 33, 17))


def test_masks_of_other_kinds(pairs: dict[int, Pair]) -> None:
    values = np.asarray(mask(), np.float32) / 255 * np.linspace(0.3, 1, 50, dtype=np.float32)
    whole = compare(pairs[4], mask_image=values)
    for same in (torch.from_numpy(values), values[None], values[..., None], [values], torch.from_numpy(values)[None]):
        np.testing.assert_array_equal(compare(pairs[4], mask_image=same), whole)
    ours, _ = pairs[4]
    call = {"prompt": PROMPT, "image": photo(50, 40), "height": HEIGHT, "width": WIDTH, "num_inference_steps": 4}
    call |= {"strength": 0.5, "seed": 7, "output_type": "np"}
    for other in (values >= 0.5, torch.from_numpy(values >= 0.5), jnp.asarray(values)[None, None]):
        np.testing.assert_array_equal(ours(mask_image=other, **call).images, whole)
    for mode in ("1", "RGB", "RGBA"):
        compare(pairs[4], mask_image=mask().convert(mode))


def test_what_is_not_masked_stays(pairs: dict[int, Pair]) -> None:
    """Latents that are kept are those of the given picture, without noise."""
    ours, _ = pairs[4]
    latents = np.random.RandomState(1).randn(1, 4, 16, 20).astype(np.float32)
    half = np.zeros((HEIGHT, WIDTH), np.float32)
    half[:, 20:] = 1
    call = {"prompt": PROMPT, "image": latents, "mask_image": half, "height": HEIGHT, "width": WIDTH, "seed": 1}
    made = np.asarray(ours(**call, num_inference_steps=3, output_type="latent").images)
    np.testing.assert_array_equal(made[..., :10], latents[..., :10])
    assert np.abs(made - latents)[..., 10:].min() > 0


CALLS: dict[str, dict[str, Any]] = {
    "two prompts": {"prompt": [PROMPT, "a blue square"]},
    "two images, two masks, two of each": {
        "prompt": [PROMPT, "a blue square"], "image": [photo(50, 40), photo(50, 40, seed=1)],
        "mask_image": [mask(), mask("soft")], "num_images_per_prompt": 2,
    },
    "one image, two masks": {"prompt": [PROMPT, "blue"], "mask_image": [mask(), mask("soft")]},
    "a seed for each": {"prompt": [PROMPT, "a blue square"], "seed": [3, 4]},
    "arrays": {"image": np.asarray(photo(50, 40), np.float32)[None] / 255},
    "to the middle": {"strength": 0.9, "denoising_end": 0.7, "num_inference_steps": 8},
    "without guidance": {"guidance_scale": 1.0, "negative_prompt": "blue"},
    "micro-conditioning": {
        "original_size": (40, 56), "crops_coords_top_left": (3, 5), "target_size": (64, 32),
        "negative_original_size": (12, 14), "guidance_rescale": 0.5,
    },
    "given noise": {"latents": torch.from_numpy(np.random.RandomState(1).randn(1, 4, 16, 20).astype(np.float32))},
}  # fmt: skip


@pytest.mark.parametrize(
    ("channels", "name"), [*((4, name) for name in CALLS), (9, "a seed for each"), (9, "given noise")]
)
def test_calls(pairs: dict[int, Pair], channels: int, name: str) -> None:
    """Euler ancestral draws in every step: the order of all draws counts."""
    compare(pairs[channels], "euler ancestral", **CALLS[name])


def test_latents_as_image(pairs: dict[int, Pair]) -> None:
    """They cannot be masked, so a U-Net that sees the masked picture needs its latents; nothing is drawn for either."""
    rng = np.random.RandomState(2)
    latents, masked = (torch.from_numpy(rng.randn(1, 4, 16, 20).astype(np.float32)) for _ in range(2))
    compare(pairs[4], "euler ancestral", image=latents)
    compare(pairs[4], "euler ancestral", image=latents, denoising_start=0.4)
    for pair in pairs.values():
        compare(pair, "euler ancestral", image=latents, masked_image_latents=masked)
        compare(pair, "euler ancestral", masked_image_latents=masked, strength=1.0)


@pytest.mark.parametrize("channels", [4, 9])
def test_only_the_box_around_the_mask(pairs: dict[int, Pair], channels: int) -> None:
    """Pixels where the mask is black are the original's, bit for bit."""
    image, masks = photo(90, 70), [Image.new("L", (90, 70)) for _ in range(2)]
    masks[0].paste(255, (50, 12, 71, 60))
    masks[1].paste(180, (5, 60, 85, 70))
    for where, padding in zip(masks, (0, 7), strict=True):
        call = {"image": image, "mask_image": where, "padding_mask_crop": padding, "output_type": "pil"}
        made = compare(pairs[channels], **call)[0] * 255
        same = (made == np.asarray(image, np.float32)).all(-1)
        assert same[np.asarray(where) == 0].all()
        assert same.mean() < 0.95


@pytest.mark.parametrize("channels", [4, 9])
def test_callbacks_change_the_mask(pairs: dict[int, Pair], channels: int) -> None:
    names = ["mask", "masked_image_latents"][: 1 + (channels == 9)]
    before = compare(pairs[channels])
    seen: list[dict[str, tuple[int, ...]]] = []

    def change(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        if step > 0:
            return {}
        flipped = tensors["mask"].flip(3) if isinstance(tensors["mask"], torch.Tensor) else tensors["mask"][..., ::-1]
        return {"mask": flipped} | {name: -1.5 * tensors[name] for name in names[1:]}

    call = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": names, "num_inference_steps": 6}
    after = compare(pairs[channels], **call)
    assert np.abs(after - before).max() > 0.05
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


ODD: dict[str, Any] = {
    "prompt": PROMPT,
    "image": photo(70, 50),
    "mask_image": mask(),
    "height": 34,
    "width": 40,
    "seed": 1,
}
ODD |= {"num_inference_steps": 3, "strength": 0.7, "output_type": "latent"}


def on(pair: Pair, **choices: Any) -> np.ndarray:
    """Return latents of 17 rows, which divide among no mesh, made on one."""
    ours, _ = pair
    ours.scheduler = scheduler_from_config(BETAS | SCHEDULERS["euler ancestral"])
    pipe = StableDiffusionXLInpaintPipeline.from_pipe(ours, parallel=Parallel(**choices))
    return np.asarray(pipe(**ODD).images)


@pytest.mark.parametrize(
    ("channels", "choices"), [(9, {"patch": 3, "emulate": True}), (4, {"cfg": 2, "patch": 4})], ids=str
)
def test_any_mesh_makes_the_latents_of_one_device(
    pairs: dict[int, Pair], channels: int, choices: dict[str, Any]
) -> None:
    """Differences are roundings of 1e-6 a step, grown by random weights."""
    one, several = on(pairs[channels]), on(pairs[channels], **choices, mode="full_sync")
    assert one.shape == (1, 4, 17, 20)
    assert np.abs(several - one).max() < 1e-5 * np.abs(one).max()


def test_displaced_steps_on_real_and_virtual_devices(pairs: dict[int, Pair]) -> None:
    real, virtual = (on(pairs[9], patch=2, warmup_steps=0, emulate=emulate) for emulate in (False, True))
    assert np.isfinite(real).all()
    assert np.abs(virtual - real).max() < 1e-5 * np.abs(real).max()


def test_other_values_compile_nothing(pairs: dict[int, Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pairs[4]
    ours.scheduler = scheduler_from_config(BETAS | SCHEDULERS["euler"])
    call = {"prompt": PROMPT, "height": HEIGHT, "width": WIDTH, "num_inference_steps": 4, "seed": 1}
    ours(**call, image=photo(50, 40), mask_image=mask(), strength=0.5)
    compiled: list[str] = []
    prepare = Program.prepare
    monkeypatch.setattr(
        Program, "prepare", lambda self, *a, **k: [compiled.append(self.name), prepare(self, *a, **k)][1]
    )
    for image, where, strength in ((photo(9, 8, seed=3), mask("soft"), 0.75), (photo(50, 40), mask("dots"), 1.0)):
        ours(**call, image=image, mask_image=where, strength=strength)
    assert compiled == []


def test_u_nets_and_pipelines(pairs: dict[int, Pair]) -> None:
    """A U-Net that sees a mask is refused where there is none, by name, and with the cure."""
    ours, _ = pairs[9]
    for kind in (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline):
        with pytest.raises(DistrijaxError, match=r"9 input channels.*StableDiffusionXLInpaintPipeline"):
            kind.from_pipe(ours)
    text = StableDiffusionXLPipeline.from_pipe(pairs[4][0])
    text.unet = ours.unet
    with pytest.raises(DistrijaxError, match="StableDiffusionXLInpaintPipeline"):
        text(PROMPT)


GREY = np.full((16, 20), 0.5, np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"image": None}, "there is no image"),
        ({"mask_image": None}, "there is no mask_image"),
        ({"mask_image": []}, "mask_image is an empty list"),
        ({"mask_image": "mask.png"}, "mask_image is 'mask.png'"),
        ({"mask_image": [mask(), GREY]}, "mask_image mixes"),
        ({"mask_image": np.zeros((16, 20, 3), np.float32)}, "one channel"),
        ({"mask_image": np.zeros((1, 16, 20, 3), np.float32)}, "one channel"),
        ({"mask_image": 255 * GREY}, "values from 127.5 to 127.5"),
        ({"mask_image": GREY * np.nan}, "mask_image is a ndarray"),
        ({"mask_image": [mask(), mask()]}, "2 masks cannot be repeated to 1 pictures"),
        ({"image": [photo(), photo()], "prompt": ["a"] * 6, "mask_image": [mask()] * 3}, "2 images and 3 masks"),
        ({"height": 33}, "height is 33"),
        ({"image": np.zeros((1, 4, 8, 8), np.float32)}, "give height and width"),
        ({"masked_image_latents": np.zeros((1, 4, 8, 8))}, r"must be \(B, 4, 16, 20\)"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"strength": 0.1}, "leaves none"),
        ({"padding_mask_crop": -1}, "padding_mask_crop is -1"),
        ({"padding_mask_crop": 4, "output_type": "np"}, "output_type is 'np'"),
        ({"padding_mask_crop": 4, "image": np.zeros((40, 50, 3))}, "image is a ndarray"),
        ({"padding_mask_crop": 4, "mask_image": GREY}, "mask_image is a ndarray"),
        ({"padding_mask_crop": 4, "mask_image": mask("black")}, "black everywhere"),
        ({"padding_mask_crop": 4, "mask_image": mask("soft", 9, 9)}, "the same size"),
        ({"callback_on_step_end_tensor_inputs": ["masked_image_latents"]}, "has masked_image_latents"),
    ],
)
def test_bad_arguments(pairs: dict[int, Pair], call: dict[str, Any], message: str) -> None:
    ours, _ = pairs[4]
    good = {"prompt": PROMPT, "image": photo(50, 40), "mask_image": mask(), "height": HEIGHT, "width": WIDTH}
    with pytest.raises(DistrijaxError, match=message):
        ours(**(good | {"num_inference_steps": 4} | call))


def test_latents_that_cannot_be_masked(pairs: dict[int, Pair]) -> None:
    with pytest.raises(DistrijaxError, match="give masked_image_latents"):
        pairs[9][0](PROMPT, image=np.zeros((1, 4, 8, 8), np.float32), mask_image=GREY)

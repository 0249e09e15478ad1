"""Time ids against what diffusers' U-Net receives in runs of one step."""

import diffusers
import numpy as np
import pytest
import torch
from test_prompt import Pair
from test_tokenizer import write_clip_tokenizer

from distrijax.errors import DistrijaxError
from distrijax.text.time_ids import check_time_ids, image_to_image_time_ids, time_ids

pytestmark = pytest.mark.fast

SIZES = {"size": (1, 1), "original_size": (100, 200), "crops_coords_top_left": (3, 4), "target_size": (16, 8)}
NEGATIVES = [
    {},
    {"negative_original_size": (64, 32)},
    {"negative_target_size": (8, 24)},
    {"negative_crops_coords_top_left": (5, 6)},
    {"negative_original_size": (64, 32), "negative_target_size": (8, 24)},
    {"negative_original_size": (64, 32), "negative_crops_coords_top_left": (5, 6), "negative_target_size": (8, 24)},
]
SCORES = {"aesthetic_score": 6.5, "negative_aesthetic_score": 2.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    write_clip_tokenizer(root / "tokenizer")
    write_clip_tokenizer(root / "tokenizer_2", pad="!")
    return root


@pytest.fixture(scope="module")
def text_to_image(folders):
    return Pair(folders).theirs


@pytest.fixture(scope="module")
def image_to_image(folders):
    """diffusers' image-to-image pipeline without and with an aesthetic score."""
    return {
        score: diffusers.StableDiffusionXLImg2ImgPipeline(
            **Pair(folders, base=not score, time_ids=5 if score else 6).theirs.components,
            requires_aesthetics_score=score,
            add_watermarker=False,
        )
        for score in (False, True)
    }


def received(pipe, **arguments) -> np.ndarray:
    """Return the time ids [branches B, 6 or 5] that the U-Net receives, negative branch first."""
    seen = []

    def watch(module, args, kwargs):
        seen.append(kwargs["added_cond_kwargs"]["time_ids"].numpy())

    pipe.set_progress_bar_config(disable=True)
    handle = pipe.unet.register_forward_pre_hook(watch, with_kwargs=True)
    pipe("a", num_inference_steps=1, output_type="latent", **SIZES, **arguments)
    handle.remove()
    return seen[0]


def assert_same(ours: np.ndarray, theirs: np.ndarray, batch: int, count: int) -> None:
    assert (ours.shape, ours.dtype) == ((2, batch, count), np.float32)
    np.testing.assert_array_equal(ours.reshape(2 * batch, count), theirs)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("negative", NEGATIVES)
def test_text_to_image(text_to_image, batch, negative):
    theirs = received(text_to_image, height=8, width=8, num_images_per_prompt=batch, **negative)
    assert_same(time_ids(batch=batch, **SIZES, **negative), theirs, batch, 6)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("negative", NEGATIVES)
@pytest.mark.parametrize("score", [False, True])
def test_image_to_image(image_to_image, batch, negative, score):
    picture = torch.zeros(1, 3, 8, 8)
    theirs = received(
        image_to_image[score], image=picture, strength=1.0, num_images_per_prompt=batch, **SCORES, **negative
    )
    arguments = {"batch": batch, **SIZES, **negative, **SCORES, "requires_aesthetics_score": score}
    assert_same(image_to_image_time_ids(**arguments), theirs, batch, 5 if score else 6)
    if score:  # diffusers has no text-to-image with a score
        assert_same(time_ids(**arguments), theirs, batch, 5)


def test_default_scores_are_those_of_diffusers(image_to_image):
    theirs = received(image_to_image[True], image=torch.zeros(1, 3, 8, 8), strength=1.0)
    assert_same(image_to_image_time_ids(batch=1, **SIZES, requires_aesthetics_score=True), theirs, 1, 5)


def test_time_ids_must_fit_the_unet():
    check_time_ids(6, 1280, 256, 2816)
    check_time_ids(5, 1280, 256, 2560)
    with pytest.raises(DistrijaxError, match="set requires_aesthetics_score"):
        check_time_ids(6, 1280, 256, 2560)
    with pytest.raises(DistrijaxError, match="turn requires_aesthetics_score off"):
        check_time_ids(5, 1280, 256, 2816)
    with pytest.raises(DistrijaxError, match="takes 2816 values, but 6 time ids of 256 and a pooled vector of 768"):
        check_time_ids(6, 768, 256, 2816)


@pytest.mark.parametrize("name", [prefix + name for name in list(SIZES)[1:] for prefix in ("", "negative_")])
def test_sizes_are_pairs(name):
    for wrong in 7, (1, 2, 3), "ab", (), (1, None):
        with pytest.raises(DistrijaxError, match=f"{name} is .* must be a pair of finite numbers"):
            time_ids(batch=1, **SIZES | {name: wrong})


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_numbers(name):
    with pytest.raises(DistrijaxError, match=f"{name} is nan"):
        time_ids(batch=1, **SIZES, **{name: float("nan")}, requires_aesthetics_score=True)

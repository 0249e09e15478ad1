"""Time ids: the sizes, crops and scores that condition SDXL besides the text (arXiv 2307.01952, section 2.2)."""

import functools
from collections.abc import Sequence

import numpy as np

from distrijax.checks import finite_number, numbers
from distrijax.errors import DistrijaxError

Pair = Sequence[float]


def time_ids(
    *,
    batch: int,
    size: Pair,
    original_size: Pair | None = None,
    target_size: Pair | None = None,
    crops_coords_top_left: Pair = (0, 0),
    negative_original_size: Pair | None = None,
    negative_crops_coords_top_left: Pair = (0, 0),
    negative_target_size: Pair | None = None,
    aesthetic_score: float = 6.0,
    negative_aesthetic_score: float = 2.5,
    requires_aesthetics_score: bool = False,
    image_to_image: bool = False,
) -> np.ndarray:
    """Return the time ids of `batch` pictures, by the rules of diffusers, which differ from pipeline to pipeline.

    Args:
        size: (height, width) in pixels, the default of `original_size` and `target_size`, as these are of the negative
            ones; crops are (top, left).
        aesthetic_score, negative_aesthetic_score: read only if `requires_aesthetics_score`.
        requires_aesthetics_score: the U-Net (SDXL's refiner) takes a score in place of the target size.
        image_to_image: follow the rules of image-to-image and inpainting, not text-to-image.

    Returns:
        float32 [2, B, 6], or [2, B, 5] with a score: the negative branch, then the prompt's.
    """
    original = _pair("original_size", original_size, size)
    crop = _pair("crops_coords_top_left", crops_coords_top_left)
    target = _pair("target_size", target_size, size)
    negative_size = _pair("negative_original_size", negative_original_size, original)
    negative_crop = _pair("negative_crops_coords_top_left", negative_crops_coords_top_left)
    negative_target = _pair("negative_target_size", negative_target_size, target)
    score = finite_number("aesthetic_score", aesthetic_score)
    negative_score = finite_number("negative_aesthetic_score", negative_aesthetic_score)
    prompt: tuple[float, ...]
    negative: tuple[float, ...]
    if requires_aesthetics_score:
        prompt, negative = (*original, *crop, score), (*negative_size, *negative_crop, negative_score)
    else:
        prompt = *original, *crop, *target
        if image_to_image:  # the negative branch has the prompt's crop
            negative = *negative_size, *crop, *negative_target
        elif negative_original_size is not None and negative_target_size is not None:
            negative = *negative_size, *negative_crop, *negative_target
        else:  # a single negative size is ignored, and so is the negative crop
            negative = prompt
    ids = np.array([negative, prompt], np.float32)
    if image_to_image or requires_aesthetics_score:
        return np.repeat(ids[:, None], batch, axis=1)
    # diffusers' text-to-image tiles the pair (negative, prompt) where it should repeat each, so that the two kinds
    # alternate within each branch if batch > 1. Equal pictures need equal ids.
    return np.tile(ids, (batch, 1)).reshape(2, batch, -1)


image_to_image_time_ids = functools.partial(time_ids, image_to_image=True)


def check_time_ids(
    count: int,
    pooled_dim: int,
    addition_time_embed_dim: int,
    projection_class_embeddings_input_dim: int,
    *,
    given: bool = False,
) -> None:
    """Raise DistrijaxError unless time ids and pooled vector together fill the input of the U-Net's added embedding.

    Args:
        count: number of time ids of a picture.
        given: the pooled vector is the caller's.
    """
    total, expected = addition_time_embed_dim * count + pooled_dim, projection_class_embeddings_input_dim
    if total == expected:
        return
    if given:
        width = expected - addition_time_embed_dim * count
        raise DistrijaxError(
            f"pooled_prompt_embeds are {pooled_dim} wide; this U-Net takes {width}, as its own text encoders make them"
        )
    hint = "projection_class_embeddings_input_dim of the U-Net and projection_dim of the text encoder do not agree"
    if expected - total == addition_time_embed_dim:
        hint = (
            "this U-Net takes one more time id, a target size in place of a score: turn requires_aesthetics_score off"
        )
    elif total - expected == addition_time_embed_dim:
        hint = "this U-Net takes one time id fewer, as a refiner does: set requires_aesthetics_score"
    raise DistrijaxError(
        f"the U-Net's added embedding takes {expected} values, but {count} time ids of {addition_time_embed_dim} and a "
        f"pooled vector of {pooled_dim} make {total}: {hint}"
    )


def _pair(name: str, pair: Pair | None, default: Pair = ()) -> tuple[float, ...]:
    return tuple(numbers(name, default if pair is None else pair, 2, 2).tolist())

"""The masks of inpainting, as diffusers reads them, and the part of a picture around one."""

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from distrijax.checks import array_of
from distrijax.errors import DistrijaxError
from distrijax.pipelines.images import ImageInput, listed, nearest

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, as PIL has them."""

_LANCZOS = Image.Resampling.LANCZOS


def preprocess_masks(masks: ImageInput, size: tuple[int, int]) -> np.ndarray:
    """Return masks of this height and width, 1 where to paint and 0 elsewhere, float32 [N, H, W, 1].

    They are resized, PIL images by Lanczos and arrays by nearest neighbour, and then 1 where they are 0.5 or brighter.
    """
    several, pil = listed("mask_image", masks)
    if pil:
        grey = [np.asarray(mask.resize(size[::-1], _LANCZOS).convert("L"), np.float32) / 255 for mask in pil]
        return (np.stack(grey)[..., None] >= 0.5).astype(np.float32)
    arrays = [_on_host(mask) for mask in several]
    if len({array.shape[1:] for array in arrays}) > 1:
        raise DistrijaxError(
            f"mask_image holds masks of shapes {[array.shape[1:3] for array in arrays]}; make them equal"
        )
    batch = np.concatenate(arrays)
    batch = nearest(nearest(batch, size[0], axis=1), size[1], axis=2)
    return (batch >= 0.5).astype(np.float32)


def _on_host(mask: Any) -> np.ndarray:
    """Return masks in [0, 1], float32 [N, H, W, 1], from one [H, W] or several, with an axis for the channel or not."""
    if str(getattr(mask, "dtype", "")).endswith("bool"):
        mask = mask * 1
    array = array_of("mask_image", mask, "a PIL image, an array or a tensor of finite numbers, or a list of them")
    shape, channels_last = array.shape, isinstance(mask, np.ndarray)
    if array.ndim == 4:
        array = array if channels_last else array.transpose(0, 2, 3, 1)
    elif array.ndim == 3 and channels_last and shape[-1] in (1, 3, 4):
        array = array[None]
    elif array.ndim in (2, 3):
        array = (array if array.ndim == 3 else array[None])[..., None]
    if array.ndim != 4 or array.shape[-1] != 1 or not array.size:
        raise DistrijaxError(
            f"mask_image has the shape {list(shape)}; it must be [H, W] or [B, H, W], with one channel"
        )
    array = array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
    if array.min() < 0 or array.max() > 1:
        raise DistrijaxError(f"mask_image has values from {array.min():g} to {array.max():g}; they must be in [0, 1]")
    return array


def box_around(mask: Image.Image, size: tuple[int, int], padding: int) -> Box:
    """Return the smallest box of the aspect of `size` with all that is not black and `padding` pixels around it.

    Where it would leave the picture it is moved inside, and cut if it is too large.

    Args:
        size: height and width at which the box will be painted.
    """
    painted = np.asarray(mask.convert("L")) != 0
    if not painted.any():
        raise DistrijaxError("mask_image is black everywhere; with padding_mask_crop, it must show where to paint")
    bounds = []
    for axis in (0, 1):  # of columns, then of rows
        indices = np.flatnonzero(painted.any(axis=axis))
        length = painted.shape[1 - axis]
        bounds.append((max(int(indices[0]) - padding, 0), min(int(indices[-1]) + 1 + padding, length), length))
    (left, right, width), (top, bottom, height) = bounds
    aspect = size[1] / size[0]
    if (right - left) / (bottom - top) > aspect:
        top, bottom = _widened(top, bottom, int((right - left) / aspect - (bottom - top)), height)
    else:
        left, right = _widened(left, right, int((bottom - top) * aspect - (right - left)), width)
    return left, top, right, bottom


def _widened(first: int, last: int, by: int, length: int) -> tuple[int, int]:
    first, last = first - by // 2, last + by - by // 2
    beyond = max(0, last - length)
    first, last = first - beyond, last - beyond
    return max(0, first), min(last - min(0, first), length)


def fitted(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """Return a box of a picture, as large as fits into `size`, framed by its outermost rows or columns."""
    height, width = size
    part = image.crop(box)
    part, left, top = _placed(part, size, covers=False)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(part, (left, top))
    if top > 0:
        canvas.paste(part.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        canvas.paste(part.resize((width, top), box=(0, part.height, width, part.height)), (0, top + part.height))
    if left > 0:
        canvas.paste(part.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        canvas.paste(part.resize((left, height), box=(part.width, 0, part.width, height)), (left + part.width, 0))
    return canvas


def pasted(painted: Image.Image, box: Box, original: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the original with what was painted of a box put back, where the mask is not black: else bit for bit."""
    left, top, right, bottom = box
    size = bottom - top, right - left
    part, x, y = _placed(painted, size, covers=True)
    canvas = Image.new("RGB", size[::-1])
    canvas.paste(part, (x, y))
    result = Image.new("RGBA", original.size)
    result.paste(canvas, (left, top))
    kept = Image.new("RGBa", original.size)  # premultiplied by alpha: soft masks mix without a dark rim
    kept.paste(original.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    result = result.convert("RGB").convert("RGBA")
    result.alpha_composite(kept.convert("RGBA"))
    return result.convert("RGB")


def _placed(image: Image.Image, size: tuple[int, int], *, covers: bool) -> tuple[Image.Image, int, int]:
    """Return a picture resized to cover `size`, or to fit into it, with its place there: left and top."""
    (height, width), (w, h) = size, image.size
    if (width / height > w / h) == covers:
        w, h = width, h * width // w
    else:
        w, h = w * height // h, height
    return image.resize((w, h), _LANCZOS), width // 2 - w // 2, height // 2 - h // 2

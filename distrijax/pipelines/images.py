"""Conversion of PIL images, arrays or tensors, alone or in a list, to arrays in [-1, 1]."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from distrijax.checks import array_of, whole_number
from distrijax.errors import DistrijaxError

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline

ImageInput = Image.Image | np.ndarray | Any
"""A PIL image; a NumPy array [H, W, C] or [B, H, W, C] in [0, 1]; a torch tensor or JAX array [C, H, W] or
[B, C, H, W] in [0, 1]; latents [B, latent channels, h, w]; or a list of one of them."""

_CHANNELS_LAST = (1, 3, 4)


class Pictures(NamedTuple):
    """Pictures [N, H, W, 3] in [-1, 1], or their latents [N, h, w, C] in the U-Net's scale."""

    values: np.ndarray
    is_latent: bool

    def latent_size(self, scale_factor: int) -> tuple[int, int]:
        """Return rows and columns of their latents."""
        height, width = self.values.shape[1:3]
        return (height, width) if self.is_latent else (height // scale_factor, width // scale_factor)


def preprocess_images(
    images: ImageInput, multiple: int, latent_channels: int, size: tuple[int, int] | None = None
) -> Pictures:
    """Return pictures as diffusers' `VaeImageProcessor` reads them, converted to RGB.

    PIL images are resized by Lanczos, arrays by nearest neighbour. diffusers does not convert to RGB: it takes RGBA
    images for latents and fails on greyscale ones.

    Args:
        multiple: of pixels, to which the first image's size is rounded down, the size of all.
        latent_channels: the number of channels that tells latents, which are returned as they are.
        size: height and width, in place of the first image's.

    Raises:
        DistrijaxError: the images are not pictures, or have different sizes.
    """
    several, pil = listed("image", images)
    if pil:
        return Pictures(_from_pil(pil, multiple, size), is_latent=False)
    arrays, first = [_on_host(image) for image in several], several[0]
    if any(array.ndim not in (3, 4) for array in arrays):
        shapes = ", ".join(str(list(array.shape)) for array in arrays)
        raise DistrijaxError(f"image has the shape {shapes}; it must be [H, W, C] or [B, H, W, C]")
    arrays = [array if array.ndim == 4 else array[None] for array in arrays]
    if len({array.shape[1:] for array in arrays}) > 1:
        raise DistrijaxError(f"image holds pictures of shapes {[array.shape[1:] for array in arrays]}; make them equal")
    batch = np.concatenate(arrays)
    is_numpy = isinstance(first, np.ndarray)
    if batch.shape[1] == latent_channels and not (is_numpy and batch.shape[-1] in _CHANNELS_LAST):
        return Pictures(batch.transpose(0, 2, 3, 1), is_latent=True)
    batch = _rgb(batch if is_numpy else batch.transpose(0, 2, 3, 1))
    if size is None:
        size = _rounded_down(batch.shape[1:3], multiple)
    batch = nearest(nearest(batch, size[0], axis=1), size[1], axis=2)
    return Pictures(batch if batch.min() < 0 else 2 * batch - 1, is_latent=False)  # below zero: in [-1, 1] already


def listed(name: str, images: Any) -> tuple[list[Any], list[Image.Image]]:
    """Return pictures as a list, and the same again if they are PIL images, or an empty list if they are arrays."""
    several = list(images) if isinstance(images, list | tuple) else [images]
    if not several:
        raise DistrijaxError(f"{name} is an empty list; give one picture or more")
    pil = [image for image in several if isinstance(image, Image.Image)]
    if pil and len(pil) < len(several):
        raise DistrijaxError(f"{name} mixes PIL images with arrays; give pictures of one kind")
    return several, pil


def _from_pil(images: Sequence[Image.Image], multiple: int, size: tuple[int, int] | None) -> np.ndarray:
    height, width = size or _rounded_down(images[0].size[::-1], multiple)
    resized = [image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS) for image in images]
    return 2 * (np.stack([np.asarray(image) for image in resized]).astype(np.float32) / 255) - 1


def _rounded_down(size: tuple[int, ...], multiple: int) -> tuple[int, int]:
    height, width = size
    if min(size) < multiple:
        raise DistrijaxError(f"image is {height}x{width} pixels; it must be at least {multiple}x{multiple}")
    return height - height % multiple, width - width % multiple


def _on_host(image: Any) -> np.ndarray:
    array = array_of("image", image, "a PIL image, an array or a tensor of finite numbers, or a list of them")
    return array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)


def _rgb(images: np.ndarray) -> np.ndarray:  # [B, H, W, C] -> [B, H, W, 3]
    channels = images.shape[-1]
    if channels not in _CHANNELS_LAST:
        raise DistrijaxError(f"image has {channels} channels; it must have 1, 3 or 4")
    return np.repeat(images, 3, axis=-1) if channels == 1 else images[..., :3]


def nearest(images: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Return images with one axis resized as torch's `interpolate` does by default."""
    scale = np.float32(images.shape[axis] / length)
    index = np.minimum(np.floor(np.arange(length, dtype=np.float32) * scale), images.shape[axis] - 1)
    return np.take(images, index.astype(np.int64), axis)


def picture_size(pipe: "SDXLPipeline", height: int | None, width: int | None) -> tuple[int, int]:
    """Return the size of a call's pictures in pixels, by default the one that the U-Net was trained on."""
    multiple = pipe.vae_scale_factor
    native = [side * multiple for side in pipe.unet.config.native_size]
    return _side("height", height, native[0], multiple), _side("width", width, native[1], multiple)


def _side(name: str, value: int | None, default: int, multiple: int) -> int:
    if value is None:
        return default
    size = whole_number(name, value)
    if size < multiple or size % multiple:
        below = max(multiple, size // multiple * multiple)
        raise DistrijaxError(
            f"{name} is {value}; it must be a multiple of {multiple} pixels, such as {below} or {below + multiple}"
        )
    return size

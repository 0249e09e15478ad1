"""What inpainting paints on: the pictures, where to paint, and what becomes of the result."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike
from PIL import Image

from distrijax.checks import array_of, whole_number
from distrijax.errors import DistrijaxError
from distrijax.pipelines.images import ImageInput, Pictures, nearest, preprocess_images
from distrijax.pipelines.latents import check_divides
from distrijax.pipelines.masks import box_around, fitted, pasted, preprocess_masks

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline

Finish = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The checked pictures and masks of a call.

    Attributes:
        pictures: what is kept where the mask is 0.
        masks: of the latents' size, 1 where to paint, [M, h, w, 1].
        masked: the pictures with grey where to paint, or their latents if the caller gives them. Pictures that are
            latents cannot be masked: for a U-Net that sees no mask, which reads none of this, they are the same again.
        finish: puts the painted pictures where they were cut from.
    """

    pictures: Pictures
    masks: np.ndarray
    masked: Pictures
    finish: Finish

    def check_counts(self, batch: int) -> None:
        """Check that pictures and masks can be repeated to fill a batch."""
        check_divides("images", len(self.pictures.values), batch)
        check_divides("masks", len(self.masks), batch)
        check_divides("masked images", len(self.masked.values), batch)


def canvas_of(
    pipe: "SDXLPipeline",
    size: tuple[int, int],
    image: ImageInput,
    mask_image: ImageInput,
    masked_image_latents: ArrayLike | None,
    padding_mask_crop: int | None,
    output_type: str,
) -> Canvas:
    """Return what a call with these arguments paints on; `size` is height and width in pixels."""
    for name, value in (("image", image), ("mask_image", mask_image)):
        if value is None:
            raise DistrijaxError(f"there is no {name}; inpainting takes image and mask_image")
    finish: Finish = _unchanged
    if padding_mask_crop is not None:
        image, mask_image, finish = _cropped(image, mask_image, size, padding_mask_crop, output_type)
    scale, channels = pipe.vae_scale_factor, pipe.vae.config.latent_channels
    pictures = preprocess_images(image, scale, channels, size)
    masks = preprocess_masks(mask_image, size)
    rows, columns = size[0] // scale, size[1] // scale
    if pictures.is_latent and pictures.latent_size(scale) != (rows, columns):
        raise DistrijaxError(
            f"image is latents of {pictures.latent_size(scale)} rows and columns, but height={size[0]} and "
            f"width={size[1]} make {(rows, columns)}; give height and width that are {scale} times as large as latents"
        )
    masked = pictures
    if masked_image_latents is not None:
        values = array_of("masked_image_latents", masked_image_latents).astype(np.float32)
        if values.ndim != 4 or values.shape[1:] != (channels, rows, columns):
            raise DistrijaxError(
                f"masked_image_latents have the shape {values.shape}; it must be (B, {channels}, {rows}, {columns})"
            )
        masked = Pictures(values.transpose(0, 2, 3, 1), is_latent=True)
    elif not pictures.is_latent:
        if len({len(pictures.values), len(masks)} - {1}) > 1:
            raise DistrijaxError(
                f"there are {len(pictures.values)} images and {len(masks)} masks; give one for all, or as many of each"
            )
        masked = Pictures(pictures.values * (masks < 0.5), is_latent=False)
    elif pipe.unet.config.in_channels > channels:
        raise DistrijaxError("image is latents, which this U-Net needs masked; give masked_image_latents as well")
    return Canvas(pictures, nearest(nearest(masks, rows, axis=1), columns, axis=2), masked, finish)


def _unchanged(images: Any) -> Any:
    return images


def _cropped(
    image: Any, mask: Any, size: tuple[int, int], padding: int, output_type: str
) -> tuple[Image.Image, Image.Image, Finish]:
    """Return the part of a picture that its mask shows, that part of the mask, and how to put it back."""
    padding = whole_number("padding_mask_crop", padding)
    for name, value in (("image", image), ("mask_image", mask)):
        if not isinstance(value, Image.Image):
            raise DistrijaxError(f"{name} is a {type(value).__name__}; with padding_mask_crop, it must be a PIL image")
    if output_type != "pil":
        raise DistrijaxError(f"output_type is {output_type!r}; with padding_mask_crop, it must be 'pil'")
    if image.size != mask.size:
        raise DistrijaxError(
            f"image is {image.width}x{image.height} pixels and mask_image {mask.width}x{mask.height}; with "
            "padding_mask_crop, they must have the same size"
        )
    original, box = image.convert("RGB"), box_around(mask, size, padding)

    def finish(images: list[Image.Image]) -> list[Image.Image]:
        return [pasted(picture, box, original, mask) for picture in images]

    return fitted(original, box, size), fitted(mask, box, size), finish

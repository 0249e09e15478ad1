"""The pictures that a run starts from, and the settings that belong to them."""

import argparse
import dataclasses
from pathlib import Path

from PIL import Image

from distrijax.checks import finite_number, one_of
from distrijax.cli.pictures import read_picture
from distrijax.cli.settings import Settings
from distrijax.errors import DistrijaxError
from distrijax.pipelines.upscale import METHODS

STRENGTH, MASKED_STRENGTH, UPSCALED_STRENGTH = 0.3, 0.9999, 0.35  # the pipelines' defaults


def pictures_to_start_from(options: argparse.Namespace, settings: Settings) -> tuple[Settings, dict[str, Image.Image]]:
    """Open the pictures that the settings name; return the completed settings, and the pictures by argument of a call.

    Raises:
        DistrijaxError: a picture cannot be read, or is not the one that `--like` was made from.
    """
    if settings.upscale is not None:
        if settings.mask is not None:
            raise DistrijaxError("--upscale cannot follow --mask; upscale the result: --image RESULT --upscale X")
        finite_number("--upscale", settings.upscale, 1, 8)
        if settings.upscale_method is not None:
            one_of("--upscale-method", settings.upscale_method, METHODS)
        if settings.strength is None:
            settings = dataclasses.replace(settings, strength=UPSCALED_STRENGTH)
        if settings.image is None:
            return settings, {}
    elif settings.upscale_method is not None:
        raise DistrijaxError("--upscale-method says how to enlarge, but nothing is enlarged; add --upscale 2")
    if settings.image is None:
        for name, says in {"strength": "how much to change", "mask": "where to change"}.items():
            if getattr(settings, name) is not None:
                raise DistrijaxError(f"--{name} says {says} a picture, but there is none; add --image")
    if settings.mask is None and settings.padding_mask_crop is not None:
        raise DistrijaxError("--padding-mask-crop says how much around a mask to show, but there is none; add --mask")
    if settings.image is None:
        return settings, {}
    sizes = [side for side in ("height", "width") if side in options]
    if settings.mask is None and sizes:
        raise DistrijaxError(
            f"with --image, the size is that of the picture; leave out {' and '.join(f'--{side}' for side in sizes)}, "
            "or resize the picture"
        )
    image, digest = _opened("image", settings.image, settings.image_sha256, options)
    strength = settings.strength
    if settings.mask is None:
        strength = STRENGTH if strength is None else strength
        return dataclasses.replace(settings, image_sha256=digest, strength=strength), {"image": image}
    mask, mask_digest = _opened("mask", settings.mask, settings.mask_sha256, options)
    if {"image", "mask", "padding_mask_crop"} & set(vars(options)):  # unlike --like alone, which has the size already
        rounded = {"height": max(8, image.height // 8 * 8), "width": max(8, image.width // 8 * 8)}
        own = dict.fromkeys(rounded) if settings.padding_mask_crop is not None else rounded
        settings = settings.updated(own | {side: getattr(settings, side) for side in sizes})
    strength = MASKED_STRENGTH if strength is None else strength
    settings = dataclasses.replace(settings, image_sha256=digest, mask_sha256=mask_digest, strength=strength)
    return settings, {"image": image, "mask_image": mask}


def _opened(
    option: str, file: str, expected_digest: str | None, options: argparse.Namespace
) -> tuple[Image.Image, str]:
    """Open the picture of an option, which is given or comes from `--like`; return its digest, too."""
    path, again = Path(file), option not in options
    if again and not path.exists():
        raise DistrijaxError(f"{options.like} was made from {path}, which is gone; say where it is with --{option}")
    image, digest = read_picture(path)
    if again and digest != expected_digest:
        raise DistrijaxError(
            f"{path} has changed since {options.like} was made from it; to use it as it is now, add --{option} {path}"
        )
    return image, digest

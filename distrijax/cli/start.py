"""The pictures that a run starts from, and the settings that belong to them."""

import argparse
import dataclasses
from pathlib import Path

from PIL import Image

from distrijax.cli.pictures import read_picture
from distrijax.cli.settings import Settings
from distrijax.errors import DistrijaxError

STRENGTH = 0.3  # the pipeline's default


def pictures_to_start_from(options: argparse.Namespace, settings: Settings) -> tuple[Settings, dict[str, Image.Image]]:
    """Open the pictures that the settings name; return the completed settings, and the pictures by argument of a call.

    Raises:
        DistrijaxError: a picture cannot be read, or is not the one that `--like` was made from.
    """
    if settings.image is None:
        if settings.strength is not None:
            raise DistrijaxError("--strength says how much to change a picture, but there is none; add --image")
        return settings, {}
    sizes = [f"--{side}" for side in ("height", "width") if side in options]
    if sizes:
        raise DistrijaxError(
            f"with --image, the size is that of the picture; leave out {' and '.join(sizes)}, or resize the picture"
        )
    image, digest = _opened("image", settings.image, settings.image_sha256, options)
    strength = STRENGTH if settings.strength is None else settings.strength
    return dataclasses.replace(settings, image_sha256=digest, strength=strength), {"image": image}


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

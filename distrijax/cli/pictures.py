"""Picture files, with the settings that made them inside."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from distrijax import __version__
from distrijax.cli.settings import Settings
from distrijax.errors import DistrijaxError

METADATA = "distrijax"  # the PNG text chunk that holds a picture's settings, as JSON


def read_picture(path: Path) -> tuple[Image.Image, str]:
    """Return a picture, turned upright as its camera says, and the SHA-256 digest of its file.

    Raises:
        DistrijaxError: the file is missing, or is not a picture.
    """
    with _errors(path):
        content = path.read_bytes()  # read once: the digest is that of the picture that is used
        with Image.open(BytesIO(content)) as image:
            return ImageOps.exif_transpose(image), hashlib.sha256(content).hexdigest()


def read_settings(path: Path) -> Settings:
    """Return the settings that a PNG carries.

    Raises:
        DistrijaxError: the file is missing, is not a picture, or carries no settings.
    """
    with _errors(path), Image.open(path) as image:
        text = image.info.get(METADATA)
    try:
        values = json.loads(text or "")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise DistrijaxError(f"{path}: carries no settings; only PNGs that `distrijax generate` made do")
    try:
        return Settings().updated(values)
    except DistrijaxError as error:
        raise DistrijaxError(f"{path}: {error}") from None


def png(image: Image.Image, settings: Settings) -> bytes:
    """Return a PNG file that carries its settings."""
    info, file = PngInfo(), BytesIO()
    values = {"version": __version__, **dataclasses.asdict(settings)}
    info.add_itxt(METADATA, json.dumps(values, ensure_ascii=False))
    image.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn the errors of reading a picture into DistrijaxErrors."""
    try:
        yield
    except FileNotFoundError:
        raise DistrijaxError(f"{path}: there is no such picture") from None
    except UnidentifiedImageError:
        raise DistrijaxError(f"{path}: cannot be read as a picture; its format is unknown") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        reason = getattr(error, "strerror", None) or error
        raise DistrijaxError(f"{path}: cannot be read as a picture ({reason})") from None

"""The textual inversions of `distrijax generate --embedding FILE[:TOKEN]`."""

import argparse
import dataclasses
from pathlib import Path

from distrijax.adapters.files import digest_of
from distrijax.checkpoint.inversion import read_inversion
from distrijax.cli.settings import Settings
from distrijax.errors import DistrijaxError
from distrijax.pipelines.base import SDXLPipeline


def split(entry: str) -> tuple[str, str | None]:
    """Return the file and the token of `FILE[:TOKEN]`."""
    file, _, token = entry.rpartition(":")
    return (file, token) if file and token and "/" not in token and not Path(entry).exists() else (entry, None)


def with_digests(options: argparse.Namespace, settings: Settings) -> Settings:
    """Return the settings with a digest of each file; raise an error for one that cannot be used, or has changed."""
    digests: list[str | None] = []
    for entry in settings.embedding or ():
        if not isinstance(entry, str):
            raise DistrijaxError(f"the setting embedding has {entry!r}; it must be FILE[:TOKEN]")
        file, _ = split(entry)
        read_inversion(file)
        digests.append(digest_of(Path(file)) if Path(file).is_file() else None)
    if settings.embedding and "embedding" not in options and digests != settings.embedding_sha256:
        raise DistrijaxError(
            f"{' or '.join(settings.embedding)} has changed since {options.like} was made with it; to use it as it is "
            "now, add --embedding"
        )
    return dataclasses.replace(settings, embedding_sha256=digests or None)


def load_embeddings(pipe: SDXLPipeline, settings: Settings) -> None:
    """Load the textual inversions of the settings."""
    for entry in settings.embedding or ():
        file, token = split(entry)
        pipe.load_textual_inversion(file, token)

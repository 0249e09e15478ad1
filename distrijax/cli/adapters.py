"""`--lora`: adapters of `distrijax generate`, in its options, in the settings of a picture, and in the pipeline."""

import argparse
import dataclasses
from pathlib import Path

from distrijax.adapters.files import digest_of, find_adapter
from distrijax.checks import finite_number
from distrijax.cli.settings import Settings
from distrijax.errors import DistrijaxError
from distrijax.pipelines.base import SDXLPipeline

ENTRY: dict[str, type | tuple[type, ...]] = {"file": str, "weight": (int, float), "sha256": str}
"""What a picture's settings say of each adapter: the file as it was typed, its weight, and the file's digest."""


def add_adapters(command: argparse.ArgumentParser) -> None:
    """Add the option to a command."""
    command.add_argument_group("adapters").add_argument(
        "--lora",
        action="append",
        metavar="FILE[:WEIGHT]",
        help="a LoRA or a relative of it, and how much it counts (default: 1); can be given several times. The demo "
        "model has demo:outlines",
    )


def chosen_adapters(options: argparse.Namespace, settings: Settings) -> Settings:
    """Return the settings with an entry of each adapter, whose files are there.

    Raises:
        DistrijaxError: a file is missing, or is not the one that the picture of `--like` was made with.
    """
    if "lora" in options:
        entries = [_entry(text) for text in options.lora]
        return dataclasses.replace(settings, lora=entries or None)
    for entry in settings.lora or []:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), kind) for name, kind in ENTRY.items()):
            raise DistrijaxError(f"{options.like}: the setting lora is {settings.lora!r}; it must list files")
        if digest_of(find_adapter(entry["file"])) != entry["sha256"]:
            raise DistrijaxError(
                f"{entry['file']} has changed since {options.like} was made with it; to use it as it is now, add "
                f"--lora {entry['file']}:{entry['weight']:g}"
            )
    return settings


def load_adapters(pipe: SDXLPipeline, settings: Settings) -> None:
    """Load the adapters of the settings, and make all of them active."""
    weights = {}
    for number, entry in enumerate(settings.lora or []):
        pipe.load_lora_weights(entry["file"], name := f"{number + 1}: {entry['file']}")
        weights[name] = entry["weight"]
    if weights:
        pipe.set_adapters(list(weights), list(weights.values()))


def _entry(text: str) -> dict[str, object]:
    file, _, last = text.rpartition(":")
    try:
        weight = float(last)
    except ValueError:
        file = ""
    if not file or Path(text).exists():  # the colon is part of the name
        file, weight = text, 1.0
    finite_number(f"--lora {file}: the weight", weight)
    return {"file": file, "weight": weight, "sha256": digest_of(find_adapter(file))}

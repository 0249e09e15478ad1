"""SDXL's published configurations, which come with the package: for models known by name, and for single files."""

import json
from importlib import resources
from typing import Any

from distrijax.checkpoint.component import Checkpoint, Component
from distrijax.checkpoint.folder import present_in
from distrijax.config.entry import Json

KNOWN: dict[str, tuple[str, Json]] = {  # name -> the packaged configuration, and what differs from it in the U-Net
    "sdxl-base": ("base", {}),
    "sdxl-refiner": ("refiner", {}),
    # Not published: SDXL's widths with fewer transformer blocks, 0.85e9 parameters instead of 2.57e9.
    "sdxl-mid": ("base", {"transformer_layers_per_block": [1, 1, 2]}),
}


def packaged(name: str) -> dict[str, Any]:
    """Return the contents of a file in `checkpoint/configs`."""
    return json.loads((resources.files("distrijax.checkpoint") / "configs" / f"{name}.json").read_text())


def published(kind: str, changes: Json | None = None) -> Checkpoint:
    """Return SDXL `base` or `refiner` without weights; `changes` override the U-Net's attributes."""
    index, where = packaged(f"{kind}_model_index"), f"SDXL {kind}'s own configuration"
    components = {}
    for name in present_in(index):
        values = packaged(f"{kind}_unet") | dict(changes or {}) if name == "unet" else packaged(name)
        components[name] = Component.from_json(name, values, where, index[name][1])
    return Checkpoint(where, components, index, packaged("scheduler"), {})

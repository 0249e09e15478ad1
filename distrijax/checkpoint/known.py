"""The configurations of SDXL's published models, which come with the package."""

import json
from importlib import resources
from typing import Any

from distrijax.checkpoint.folder import present
from distrijax.checkpoint.source import COMPONENTS


def packaged(name: str) -> dict[str, Any]:
    """One of the files in `checkpoint/configs`."""
    return json.loads((resources.files("distrijax.checkpoint") / "configs" / f"{name}.json").read_text())


def published(kind: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """model_index.json of SDXL `base` or `refiner`, and config.json of each of its components."""
    index = packaged(f"{kind}_model_index")
    configs = {name: packaged(name) for name in COMPONENTS if name != "unet" and present(index, name)}
    return index, configs | {"unet": packaged(f"{kind}_unet")}

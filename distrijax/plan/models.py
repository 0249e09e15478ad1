"""Which model is planned for: a checkpoint, or one known by name, of which no weights are needed."""

import dataclasses
import json
from importlib import resources
from typing import Any

from distrijax.checkpoint.build import blueprint
from distrijax.checkpoint.load import open_source
from distrijax.config import UNetConfig
from distrijax.demo import MODEL

KNOWN = {"sdxl-base": "base", "sdxl-refiner": "refiner"}


@dataclasses.dataclass(frozen=True)
class Model:
    """The U-Net's configuration, its parameters, and those of all parts of the pipeline."""

    name: str
    unet: UNetConfig
    unet_parameters: int
    parameters: int


def model(name: str) -> Model:
    """One of `KNOWN`, `demo`, or any source that `from_pretrained` takes. No weights are read.

    Raises:
        DistrijaxError: there is no such checkpoint, or it is not of the SDXL family.
    """
    if name not in KNOWN:
        parts = open_source(MODEL if name == "demo" else name).components
        return _model(name, {part: component.blueprint for part, component in parts.items()})
    kind = KNOWN[name]
    files = {"unet": f"{kind}_unet", "vae": "vae", "text_encoder_2": "text_encoder_2"}
    if kind == "base":  # the refiner has only the second
        files["text_encoder"] = "text_encoder"
    return _model(name, {part: blueprint(part, _packaged(file), file) for part, file in files.items()})


def _model(name: str, parts: dict[str, Any]) -> Model:
    counts = {part: blue.parameters for part, blue in parts.items()}
    return Model(name, parts["unet"].config, counts["unet"], sum(counts.values()))


def _packaged(name: str) -> dict[str, Any]:
    return json.loads((resources.files("distrijax.checkpoint") / "configs" / f"{name}.json").read_text())

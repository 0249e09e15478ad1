"""Which model is planned for: a checkpoint, or one known by name, of which no weights are needed."""

import dataclasses
from typing import Any

from distrijax.checkpoint.build import blueprint
from distrijax.checkpoint.known import published
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
    _, configs = published(KNOWN[name])
    return _model(name, {part: blueprint(part, config, name) for part, config in configs.items()})


def _model(name: str, parts: dict[str, Any]) -> Model:
    counts = {part: blue.parameters for part, blue in parts.items()}
    return Model(name, parts["unet"].config, counts["unet"], sum(counts.values()))

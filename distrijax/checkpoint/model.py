"""A model before its weights are read: a checkpoint's, or one known by name, of which none are needed."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distrijax.checkpoint.build import Blueprint, blueprint
from distrijax.checkpoint.known import packaged, published
from distrijax.checkpoint.load import open_source
from distrijax.checkpoint.source import Source
from distrijax.demo import MODEL as DEMO
from distrijax.errors import DistrijaxError

Json = Mapping[str, Any]

KNOWN: dict[str, tuple[str, Json]] = {  # name -> the packaged configuration, and what differs from it in the U-Net
    "sdxl-base": ("base", {}),
    "sdxl-refiner": ("refiner", {}),
    # No published model: SDXL's widths with fewer transformer blocks, 0.85e9 parameters in place of 2.57e9.
    "sdxl-mid": ("base", {"transformer_layers_per_block": [1, 1, 2]}),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """Attributes:

    name: as it was asked for.
    configs: config.json of each component; `text_encoder` is absent in a refiner.
    index, scheduler: model_index.json, scheduler_config.json.
    source: the checkpoint; None for one that is known by name.
    """

    name: str
    configs: Mapping[str, Json]
    blueprints: Mapping[str, Blueprint]
    index: Json
    scheduler: Json
    source: Source | None

    @property
    def unet(self) -> Any:
        """The U-Net's configuration."""
        return self.blueprints["unet"].config

    @property
    def unet_parameters(self) -> int:
        return self.blueprints["unet"].parameters

    @property
    def parameters(self) -> int:
        """Of all components."""
        return sum(plan.parameters for plan in self.blueprints.values())


def find(name: str) -> Model:
    """One of `KNOWN`, `demo`, or any source that `from_pretrained` takes. No weights are read.

    Raises:
        DistrijaxError: there is no such model, or it is not of the SDXL family.
    """
    if name not in KNOWN:
        if name != "demo" and "/" not in name and not Path(name).exists():
            raise DistrijaxError(
                f"model is {name!r}; it must be {', '.join(KNOWN)}, demo, or a checkpoint that is there"
            )
        source = open_source(DEMO if name == "demo" else name)
        configs = {key: component.config for key, component in source.components.items()}
        plans = {key: component.blueprint for key, component in source.components.items()}
        return Model(name, configs, plans, source.index, source.scheduler, source)
    kind, changes = KNOWN[name]
    index, found = published(kind)
    found["unet"] |= changes
    projects = {"text_encoder": False, "text_encoder_2": True}
    plans = {key: blueprint(key, value, name, with_projection=projects.get(key)) for key, value in found.items()}
    return Model(name, found, plans, index, packaged("scheduler"), None)

"""The model that is measured: a checkpoint, or a known one with random weights, for whose time these do as well."""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from distrijax.checkpoint.build import Blueprint, blueprint
from distrijax.checkpoint.known import packaged, published
from distrijax.checkpoint.load import open_source
from distrijax.checkpoint.source import Placement, Source, put
from distrijax.demo import MODEL as DEMO
from distrijax.errors import DistrijaxError
from distrijax.parallel.mesh import Parallel
from distrijax.pipelines.sdxl import StableDiffusionXLPipeline
from distrijax.pipelines.tokenizer import Tokenizer
from distrijax.schedulers import scheduler_from_config

Json = Mapping[str, Any]

KNOWN: dict[str, tuple[str, Json]] = {  # name -> the packaged configuration, and what differs from it in the U-Net
    "sdxl-base": ("base", {}),
    "sdxl-refiner": ("refiner", {}),
    # No published model: SDXL's widths with fewer transformer blocks, 0.85e9 parameters in place of 2.57e9.
    "sdxl-mid": ("base", {"transformer_layers_per_block": [1, 1, 2]}),
}
_PERIOD = 1_000_003  # random numbers before they repeat: a prime, so that no two rows of a matrix are the same


@dataclasses.dataclass(frozen=True)
class Model:
    """A model before its weights are read or made.

    Attributes:
        name: as it was asked for.
        configs: config.json of each component; `text_encoder` is absent in a refiner.
        index, scheduler: model_index.json, scheduler_config.json.
        source: the checkpoint; None for random weights.
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

    def arrays(self, component: str, dtype: DTypeLike, placement: Placement) -> dict[str, jax.Array]:
        """The weights of a component by path."""
        if self.source is not None:
            return dict(self.source.components[component].stream(jnp.dtype(dtype), placement))  # type: ignore[arg-type]
        shapes = self.blueprints[component].shapes
        return {path: put(_drawn(path, shape).astype(dtype), placement) for path, shape in shapes.items()}

    def pipeline(self, parallel: Parallel, dtype: DTypeLike) -> tuple[StableDiffusionXLPipeline, float]:
        """The whole model on its devices, and the seconds that took. Random models read prompts as the demo does."""
        start = time.perf_counter()
        parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer"))
        for name, plan in self.blueprints.items():
            parts[name] = plan.build(self.arrays(name, dtype, parallel.replicated), dtype)
        jax.block_until_ready(parts)
        files = self.source.tokenizers if self.source is not None else open_source(DEMO).tokenizers
        for name in ("tokenizer", "tokenizer_2")[parts["text_encoder"] is None :]:
            parts[name] = Tokenizer(files[name], name)
        flags = ("force_zeros_for_empty_prompt", "requires_aesthetics_score")
        parts |= {name: self.index[name] for name in flags if name in self.index}
        scheduler = scheduler_from_config(self.scheduler)
        pipe = StableDiffusionXLPipeline(**parts, scheduler=scheduler, parallel=parallel)
        return pipe, time.perf_counter() - start


def find(name: str) -> Model:
    """One of `KNOWN`, `demo`, or any source that `from_pretrained` takes. No weights are read.

    Raises:
        DistrijaxError: there is no such model.
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


def _drawn(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers for a parameter: activations keep their size from layer to layer."""
    numbers = np.resize(_numbers(), shape)  # 2.6e9 of them in seconds, not minutes
    if len(shape) == 1:
        return numbers * np.float32(0.1) + np.float32(path.endswith("scale"))
    fan_in = math.prod(shape[1:]) if len(shape) == 4 else shape[0]  # kernels are [O, h, w, I] and [I, O]
    return numbers * np.float32(fan_in**-0.5)


@functools.cache
def _numbers() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(_PERIOD, dtype=np.float32)

"""The weights of a measured model: its checkpoint's, or random ones, which take as long."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from distrijax.checkpoint import Checkpoint, open_source
from distrijax.checkpoint.component import Placement, put
from distrijax.demo import MODEL as DEMO
from distrijax.models.unet import UNet
from distrijax.parallel.options import Parallel
from distrijax.parallel.placement import place_model
from distrijax.pipelines.text_to_image import StableDiffusionXLPipeline
from distrijax.schedulers import scheduler_from_config
from distrijax.text.tokenizer import Tokenizer

_PERIOD = 1_000_003  # random numbers before they repeat: a prime, so that no two rows of a matrix are equal


def arrays(model: Checkpoint, component: str, dtype: DTypeLike, placement: Placement) -> dict[str, jax.Array]:
    """Return the weights of a component by path."""
    described = model.components[component]
    if model.has_weights:
        return dict(described.stream(jnp.dtype(dtype), placement))  # type: ignore[arg-type]
    shapes = described.shapes
    return {path: put(_random(path, shape).astype(dtype), placement) for path, shape in shapes.items()}


def unet(model: Checkpoint, dtype: DTypeLike, parallel: Parallel) -> UNet:
    """Return the U-Net, whole on every device."""
    built = model.components["unet"].build(arrays(model, "unet", dtype, parallel.replicated), dtype)
    assert isinstance(built, UNet)
    return place_model(built, parallel)


def pipeline(
    model: Checkpoint, dtype: DTypeLike, parallel: Parallel, *, read: bool = True
) -> StableDiffusionXLPipeline:
    """Return the whole model on its devices, or with shapes for weights. Random models use the demo's tokenizers."""
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer"))
    for name, component in model.components.items():
        parts[name] = component.described(dtype, parallel.replicated)
        if read:
            parts[name] = jax.block_until_ready(component.build(arrays(model, name, dtype, parallel.replicated), dtype))
    files = model.tokenizers or open_source(DEMO).tokenizers
    for name in ("tokenizer", "tokenizer_2")[parts["text_encoder"] is None :]:
        parts[name] = Tokenizer(files[name], name)
    flags = ("force_zeros_for_empty_prompt", "requires_aesthetics_score")
    parts |= {name: model.index[name] for name in flags if name in model.index}
    return StableDiffusionXLPipeline(**parts, scheduler=scheduler_from_config(model.scheduler), parallel=parallel)


def _random(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return random numbers for a parameter, scaled so that activations keep their size from layer to layer."""
    numbers = np.resize(_numbers(), shape)  # repeated: 2.6e9 of them then take seconds, not minutes
    if len(shape) == 1:
        return numbers * np.float32(0.1) + np.float32(path.endswith("scale"))
    fan_in = math.prod(shape[1:]) if len(shape) == 4 else shape[0]  # kernels are [O, h, w, I] and [I, O]
    return numbers * np.float32(fan_in**-0.5)


@functools.cache
def _numbers() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(_PERIOD, dtype=np.float32)

"""The weights of a model that is measured: its checkpoint's, or random ones, for whose time these do as well."""

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from distrijax.checkpoint.component import Checkpoint as Model
from distrijax.checkpoint.component import Placement, put
from distrijax.checkpoint.load import open_source
from distrijax.demo import MODEL as DEMO
from distrijax.parallel.mesh import Parallel
from distrijax.pipelines.sdxl import StableDiffusionXLPipeline
from distrijax.schedulers import scheduler_from_config
from distrijax.text.tokenizer import Tokenizer

_PERIOD = 1_000_003  # random numbers before they repeat: a prime, so that no two rows of a matrix are the same


def arrays(model: Model, component: str, dtype: DTypeLike, placement: Placement) -> dict[str, jax.Array]:
    """The weights of a component by path."""
    if model.source is not None:
        return dict(model.source.components[component].stream(jnp.dtype(dtype), placement))  # type: ignore[arg-type]
    shapes = model.blueprints[component].shapes
    return {path: put(_drawn(path, shape).astype(dtype), placement) for path, shape in shapes.items()}


def pipeline(model: Model, parallel: Parallel, dtype: DTypeLike) -> tuple[StableDiffusionXLPipeline, float]:
    """The whole model on its devices, and the seconds that took. Random models read prompts as the demo does."""
    start = time.perf_counter()
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer"))
    for name, plan in model.blueprints.items():
        parts[name] = plan.build(arrays(model, name, dtype, parallel.replicated), dtype)
    jax.block_until_ready(parts)
    files = model.source.tokenizers if model.source is not None else open_source(DEMO).tokenizers
    for name in ("tokenizer", "tokenizer_2")[parts["text_encoder"] is None :]:
        parts[name] = Tokenizer(files[name], name)
    flags = ("force_zeros_for_empty_prompt", "requires_aesthetics_score")
    parts |= {name: model.index[name] for name in flags if name in model.index}
    scheduler = scheduler_from_config(model.scheduler)
    pipe = StableDiffusionXLPipeline(**parts, scheduler=scheduler, parallel=parallel)
    return pipe, time.perf_counter() - start


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

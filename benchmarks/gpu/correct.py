"""Whether a card computes what a CPU does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from distrijax import Parallel
from distrijax.checkpoint import Checkpoint, find
from distrijax.nn.attention import attend
from distrijax.tools.bench import weights
from distrijax.tools.bench.measure import PROMPT
from gpu.results import Json
from gpu.setup import Setup

# Queries, keys, pictures and heads of 64 channels: SDXL at 1024x1024, alone and as one of eight, and over the text.
ATTENTIONS = {"alone": (4096, 4096, 2, 10), "one of eight": (256, 1024, 1, 20), "text": (4096, 77, 2, 10)}


def attention(setup: Setup) -> Json:
    """Return the relative L2 distance of attention in half precision (by cuDNN on a GPU) from fp32."""
    distances = {}
    for name, (queries, keys, pictures, heads) in ATTENTIONS.items():
        if setup.tiny:
            queries, keys, heads = queries // 64, keys // 16, 2
        shapes = [(n, pictures, 64 * heads) for n in (queries, keys, keys)]
        q, k, v = (jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i, shape in enumerate(shapes))
        half = jax.jit(attend, static_argnums=3)(q, k, v, heads)
        with jax.default_matmul_precision("highest"):
            exact = jax.jit(attend, static_argnums=3)(*(x.astype(jnp.float32) for x in (q, k, v)), heads)
        distances[name] = _distance(half, exact)
    return {"relative_distance": distances}


def pictures(setup: Setup) -> Json:
    """Return how well the demo model's picture agrees with a CPU's in fp32, in dB, by dtype."""
    reference = _picture(setup, "float32", Parallel(devices=tuple(jax.devices("cpu")[:1])))
    dtypes = ("float32",) if setup.tiny else ("float32", "bfloat16", "float16")
    return {"decibels": {dtype: _agreement(_picture(setup, dtype, Parallel()), reference) for dtype in dtypes}}


def eight_patches(setup: Setup) -> Json:
    """Return how well the picture of eight virtual devices agrees with that of one, in dB, by mode."""
    one, spread = _picture(setup, setup.dtype, Parallel()), Parallel(cfg=2, patch=4, emulate=True)
    modes = ("full_sync",) if setup.tiny else ("full_sync", spread.mode)
    layouts = {mode: dataclasses.replace(spread, mode=mode) for mode in modes}
    return {"decibels": {mode: _agreement(_picture(setup, setup.dtype, at), one) for mode, at in layouts.items()}}


def _picture(setup: Setup, dtype: str, parallel: Parallel) -> np.ndarray:
    model: Checkpoint = setup.model if setup.tiny else find("demo")
    pipe = weights.pipeline(model, dtype, parallel)
    pipe.set_progress_bar_config(disable=True)
    steps = 6 if setup.tiny else 20
    return np.asarray(pipe(PROMPT, seed=1, num_inference_steps=steps, output_type="np").images, np.float64)


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio; 200 for equal pictures."""
    return round(float(-10 * np.log10(max(np.mean((a - b) ** 2), 1e-20))), 1)


def _distance(a: jax.Array, b: jax.Array) -> float:
    x, y = (np.asarray(z, np.float64) for z in (a, b))
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))

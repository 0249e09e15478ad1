"""One step of the U-Net here and in other implementations: same weights and inputs, in the same process, in turn."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distrijax.bench import peer_diffusers, peer_maxdiffusion
from distrijax.bench.peer import TIMESTEP, inputs
from distrijax.bench.step import Case
from distrijax.bench.timing import Work
from distrijax.models.unet import UNet
from distrijax.parallel.exchange import Whole

CHECKS = {"diffusers": peer_diffusers.check, "maxdiffusion": peer_maxdiffusion.check}


def check(case: Case, peers: Sequence[str]) -> None:
    """Raises DistrijaxError if one of these peers is not installed, or cannot make this U-Net."""
    for name in peers:
        CHECKS[name](case)


def works(
    case: Case, arrays: dict[str, Any], peers: Sequence[str], *, compile_torch: bool
) -> tuple[dict[str, Work], dict[str, float], dict[str, float]]:
    """One step in distrijax and in each of the others; the seconds of compilation; how far their predictions are.

    The distance is relative L2. distrijax is given what it computes once a picture (keys and values of the text); the
    others compute them in every step.

    Args:
        arrays: the weights by path.
        compile_torch: also diffusers with `torch.compile`.
    """
    work, took, prediction = _ours(case, arrays)
    made, seconds, distances = {"distrijax": work}, {"distrijax": took}, {}
    for name in peers:
        if name == "diffusers":
            other = peer_diffusers.peer(case, arrays, compiled=compile_torch)
        else:
            other = peer_maxdiffusion.peer(case, arrays)
        made |= other.works
        seconds |= other.seconds
        distances[name] = float(np.linalg.norm(prediction - other.predict()) / np.linalg.norm(prediction))
    return made, seconds, distances


def _ours(case: Case, arrays: dict[str, Any]) -> tuple[Work, float, np.ndarray]:
    """The step, the seconds of compilation, and what it predicts."""
    unet: UNet = case.model.blueprints["unet"].build(arrays, case.dtype)
    given = inputs(case)
    text = (None if x is None else jnp.asarray(x) for x in (given.context, given.pooled, given.ids, given.guidance))
    cond = jax.jit(UNet.condition)(unet, *text)
    latents = jnp.asarray(given.latents)
    step = jax.jit(lambda unet, latents, cond: unet(latents, jnp.float32(TIMESTEP), cond, Whole()))
    start = time.perf_counter()
    program = step.lower(unet, latents, cond).compile()
    seconds = time.perf_counter() - start
    return Work(lambda _: program(unet, latents, cond)), seconds, np.asarray(program(unet, latents, cond), np.float64)

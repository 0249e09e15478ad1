"""One step of the U-Net here and in other implementations: same weights and inputs, in the same process, in turn."""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distrijax.models.unet import UNet
from distrijax.nn.exchange import WHOLE
from distrijax.tools.bench import peer_diffusers, peer_maxdiffusion
from distrijax.tools.bench.peer import TIMESTEP, Peer, PeerSteps, StepInputs, Weights
from distrijax.tools.bench.timing import TimedFunction
from distrijax.tools.workload import Workload

PEERS: dict[str, Peer] = {"diffusers": peer_diffusers, "maxdiffusion": peer_maxdiffusion}


def check(workload: Workload, names: Sequence[str]) -> None:
    """Raise DistrijaxError if one of these peers is not installed, or cannot make this U-Net."""
    for name in names:
        PEERS[name].check(workload)


def compare(
    workload: Workload, weights: Weights, names: Sequence[str], *, torch_compile: bool
) -> tuple[dict[str, TimedFunction], dict[str, float]]:
    """Return a step of distrijax and of each peer, and the relative L2 distances of their predictions from ours.

    distrijax gets what it computes once for each picture, the keys and values of the text; the others compute them in
    every step.
    """
    ours = _ours(workload, weights)
    functions, distances, prediction = dict(ours.functions), {}, ours.predict()
    for name in names:
        peer = PEERS[name].build(workload, weights, torch_compile=torch_compile)
        functions |= peer.functions
        distances[name] = float(np.linalg.norm(prediction - peer.predict()) / np.linalg.norm(prediction))
    return functions, distances


def _ours(workload: Workload, weights: Weights) -> PeerSteps:
    unet = workload.model.components["unet"].build(weights, workload.dtype)
    assert isinstance(unet, UNet)
    inputs = StepInputs.of(workload)
    text = jax.tree.map(jnp.asarray, (inputs.context, inputs.pooled, inputs.ids, inputs.guidance))
    cond, latents = jax.jit(UNet.condition)(unet, *text), jnp.asarray(inputs.latents)
    step = jax.jit(lambda unet, latents, cond: unet(latents, jnp.float32(TIMESTEP), cond, WHOLE))
    start = time.perf_counter()
    program = step.lower(unet, latents, cond).compile()
    seconds = time.perf_counter() - start
    return PeerSteps(
        {"distrijax": TimedFunction(lambda _: program(unet, latents, cond), compile_seconds=seconds)},
        lambda: np.asarray(program(unet, latents, cond), np.float64),
    )

"""GPUs that may be absent: XLA's CUDA compiler takes a description of them."""

import dataclasses
import os
from importlib.util import find_spec

import jax
from jax.experimental import topologies

from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.tools.plan.cards import Card


def prepare_cuda_compiler() -> None:
    """Let the CUDA compiler load on a machine without a driver. Call it before JAX looks for devices."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    jax.config.update("jax_platforms", "cpu")


def missing_compiler() -> str | None:
    """Return what to install if the CUDA compiler is missing, otherwise None."""
    version = jax.__version__
    # Without any plug-in there is no package `jax_plugins`, and looking for a module inside it would raise.
    if find_spec("jax_plugins") and any(find_spec(f"jax_plugins.xla_{cuda}") for cuda in ("cuda13", "cuda12")):
        return None
    return (
        f"the CUDA compiler is not installed: pip install 'jax[cuda12]=={version}' (it needs no GPU); or, smaller, "
        f"pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version} nvidia-cuda-nvcc-cu12 "
        f"nvidia-cuda-runtime-cu12 nvidia-cudnn-cu12"
    )


def on_absent_gpus(layout: Parallel, card: Card, nodes: int = 1) -> Parallel:
    """Return `layout`, which is emulated, on GPUs that may be absent, spread evenly over `nodes` machines.

    Raises:
        DistrijaxError: the CUDA compiler is missing, or the devices do not divide evenly.
    """
    if (problem := missing_compiler()) is not None:
        raise DistrijaxError(problem)
    if layout.size % nodes:
        raise DistrijaxError(f"{layout.size} devices do not divide evenly over {nodes} nodes; choose a divisor")
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=card.target, topology=f"{nodes}x1x{layout.size // nodes}"
    )
    return dataclasses.replace(layout, emulate=False, devices=tuple(topology.devices))

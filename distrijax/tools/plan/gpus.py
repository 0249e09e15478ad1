"""GPUs to plan for, which may be absent, as XLA's CUDA compiler knows them."""

import dataclasses
import os
from importlib.util import find_spec

import jax
from jax.experimental import topologies

from distrijax.errors import DistrijaxError
from distrijax.parallel.cards import Card
from distrijax.parallel.options import Parallel

_TARGET = """\
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock} l2_cache_size: {cache}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""
"""GpuTargetConfigProto, as XLA's own files have it (xla/backends/gpu/target_config/specs)."""


def _target(card: Card) -> str:
    """Return the card's description for XLA, a GpuTargetConfigProto as text."""
    fields = {**dataclasses.asdict(card), "bandwidth": int(card.bandwidth), "optin": card.shared - 1024}
    return _TARGET.format(**fields)


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
        f"nvidia-cuda-runtime-cu12 nvidia-cudnn-cu12. Choose a virtual environment of its own: without a GPU, JAX then "
        "prints errors at every start, such as `Unable to load cuFFT`, unless JAX_PLATFORMS=cpu is set"
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
        platform="cuda", target_config=_target(card), topology=f"{nodes}x1x{layout.size // nodes}"
    )
    return dataclasses.replace(layout, emulate=False, devices=tuple(topology.devices))

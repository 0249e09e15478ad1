"""Compile the denoising loop for GPUs that need not be there."""

import dataclasses
import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from math import prod
from typing import Any

import jax
from jax.experimental import topologies
from jax.typing import DTypeLike

from distrijax.config import UNetConfig
from distrijax.errors import DistrijaxError
from distrijax.parallel.mesh import Parallel
from distrijax.pipelines import programs
from distrijax.pipelines.arguments import arguments, placed
from distrijax.plan.cards import Card
from distrijax.runtime.compile import compile_with
from distrijax.schedulers import EulerDiscreteScheduler, Scheduler


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The program of one loop body.

    Attributes:
        name: "synchronous" or "displaced".
        text: the scheduled program.
        held: bytes that a device holds for it besides the weights.
        memory: of one device, XLA's own analysis.
        trace_seconds, compile_seconds: what it took.
    """

    name: str
    text: str
    held: int
    memory: Any
    trace_seconds: float
    compile_seconds: float


def prepare() -> None:
    """Let the CUDA compiler load where there is no driver: before anything asks JAX for its devices."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    jax.config.update("jax_platforms", "cpu")


def why_not() -> str | None:
    """What to install if there is no CUDA compiler; None if there is one."""
    version = jax.__version__
    # Without any plug-in there is no `jax_plugins` either, and asking for what is inside of it would raise.
    if find_spec("jax_plugins") and any(find_spec(f"jax_plugins.xla_{cuda}") for cuda in ("cuda13", "cuda12")):
        return None
    return (
        f"the CUDA compiler is not installed: pip install 'jax[cuda12]=={version}' (it needs no GPU); or, smaller, "
        f"pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version} nvidia-cuda-nvcc-cu12 "
        f"nvidia-cuda-runtime-cu12 nvidia-cudnn-cu12"
    )


def imagined(card: Card, *, nodes: int = 1, **choices: Any) -> Parallel:
    """`Parallel(**choices)` over GPUs that need not be there, evenly on so many nodes.

    Raises:
        DistrijaxError: there is no CUDA compiler, or the devices cannot be dealt to the nodes.
    """
    if (problem := why_not()) is not None:
        raise DistrijaxError(problem)
    size = Parallel(**choices, emulate=True).size
    if size % nodes:
        raise DistrijaxError(f"{size} devices cannot be dealt to {nodes} nodes evenly; choose a divisor of {size}")
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=card.target, topology=f"{nodes}x1x{size // nodes}"
    )
    return Parallel(**choices, devices=tuple(topology.devices))


def compile_denoising(
    config: UNetConfig,
    parallel: Parallel,
    *,
    height: int,
    width: int,
    dtype: DTypeLike,
    guided: bool = True,
    pictures: int = 1,
    steps: int = 5,
    scheduler: Scheduler | None = None,
    options: Mapping[str, Any] | None = None,
    only: str | None = None,
) -> list[Compiled]:
    """Both programs of the denoising loop (one where no step is displaced), compiled as the pipeline does it.

    Args:
        parallel: of `imagined`, or of devices that are there.
        height, width: of the latents, an eighth of the picture's.
        options: XLA's, in place of or besides ours.
        only: the name of one program, if only that is wanted.
    """
    scheduler = scheduler or EulerDiscreteScheduler()
    args, choices = arguments(
        config,
        parallel,
        height=height,
        width=width,
        dtype=dtype,
        guided=guided,
        pictures=pictures,
        steps=steps,
        scheduler=scheduler,
    )
    program = programs.denoising("denoising", lambda message: None)
    found = []
    for displaced in [False, True][: 1 + parallel.displaces]:
        start = time.perf_counter()
        before = args
        lowered = program.lower(*args, **choices, displaced=displaced)
        traced = time.perf_counter()
        args = (args[0], placed(parallel, lowered.out_info[0], programs.CARRY), *args[2:])
        name = "displaced" if displaced else "synchronous"
        if only not in (None, name):
            continue
        # Without the devices no kernel can be tried out.
        given = {**program.options(*before, **choices), "xla_gpu_autotune_level": 0, **(options or {})}
        compiled = compile_with(lowered, given)
        end = time.perf_counter()
        memory, held = compiled.memory_analysis(), sum(map(_of_device, jax.tree.leaves(before[1:])))
        found.append(Compiled(name, compiled.as_text() or "", held, memory, traced - start, end - traced))
    return found


def _of_device(x: Any) -> int:
    """Bytes of one device's part of an argument."""
    sharding = getattr(x, "sharding", None)
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    return prod(shape) * x.dtype.itemsize

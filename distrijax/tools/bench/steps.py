"""Denoising steps to time: on a mesh, and one device's share of them.

A share is the program that one of N devices runs for its own rows and guidance branches, except for the transfers: what
the device would receive is a local copy of its own data, of the same shape. Nothing waits for a network, so shares
measure the arithmetic of an N-device step without N devices. The result is not a valid picture.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from distrijax.errors import DistrijaxError
from distrijax.models.unet import UNet
from distrijax.nn.module import Weights
from distrijax.parallel.auto.choose import Machine
from distrijax.parallel.options import Parallel
from distrijax.parallel.transport import Edges, LocalCopies
from distrijax.sampling import programs
from distrijax.sampling.guidance import Guidance
from distrijax.sampling.inputs import TextInputs, input_shapes, loop_inputs, map_shapes
from distrijax.tools import loop
from distrijax.tools.bench.timing import TimedFunction
from distrijax.tools.workload import Workload


class CopiedInPlace(LocalCopies):
    """Local copies in memory of their own, as a transfer leaves them: XLA would otherwise compute with one for all."""

    def swap(self, edges: Edges) -> Edges:
        return lax.optimization_barrier(super().swap(edges))

    def gather(self, x: Array) -> Array:
        return lax.optimization_barrier(super().gather(x))


def mesh_steps(workload: Workload, unet: UNet, parallel: Parallel) -> dict[str, TimedFunction]:
    """Return a step of each phase on these devices, compiled."""
    return _compiled(random_call(workload, unet, parallel), parallel, workload.steps)


def share_steps(workload: Workload, unet: UNet, layout: Parallel) -> dict[str, TimedFunction]:
    """Return one device's part of a step of each phase, compiled; `layout` as `share_layout` returns it."""
    return _compiled(share_call(workload, unet, layout), layout, workload.steps)


def share_layout(
    workload: Workload,
    devices: int,
    *,
    cfg: int = 1,
    mode: str = Parallel.mode,
    max_waiting: float = Parallel.max_waiting,
) -> Parallel:
    """Return the mesh of `devices`, emulated, since the others may be absent: as many cards like the first one here.

    Args:
        cfg: groups of devices among which the guidance branches are divided, if there are several devices.

    Raises:
        DistrijaxError: the workload cannot be split like that.
    """
    cfg = 1 if devices == 1 else cfg
    if devices % cfg:
        raise DistrijaxError(f"share is {devices}; it must be a multiple of cfg={cfg}, such as {cfg * devices}")
    layout = Parallel(cfg=cfg, patch=devices // cfg, mode=mode, emulate=True, max_waiting=max_waiting)
    workload.layout(layout)
    return workload.choose(layout, Machine.of(jax.devices()[0].device_kind, workload.dtype)).parallel


def share_call(workload: Workload, unet: UNet, layout: Parallel) -> loop.LoopCall:
    """Return the call of the denoising program for one device's rows and guidance branches, on one device."""
    slabs = workload.layout(layout)
    height, guided = slabs.slab * workload.vae_scale_factor, workload.guided and layout.cfg == 1
    call = random_call(dataclasses.replace(workload, height=height, guided=guided), unet, Parallel())
    alone = Parallel(mode=layout.mode, warmup_steps=0)
    return dataclasses.replace(call, parallel=alone, layout=slabs, transport=CopiedInPlace(layout.patch))


def random_call(workload: Workload, unet: UNet, parallel: Parallel) -> loop.LoopCall:
    """Return a call of `workload.steps` first steps of a picture, with random latents and text, on the devices."""
    text, latents = random_inputs(workload)
    layout, scheduler = workload.layout(parallel), loop.SCHEDULER
    schedule = scheduler.schedule(max(workload.steps, 30))[: workload.steps]
    inputs = loop_inputs(
        Weights.of(unet),
        text,
        latents * np.float32(schedule.init_noise_sigma),
        None,
        Guidance.of(5.0 if workload.branches == 2 else None),
        schedule,
        scheduler=scheduler,
        parallel=parallel,
        layout=layout,
        condition=jax.jit(programs.condition, static_argnames="parallel"),
        maps={name: np.zeros(x.shape, x.dtype) for name, x in map_shapes(workload.model.unet, latents).items()},
    )
    return loop.LoopCall(inputs.with_steps(0, workload.steps, parallel), parallel, layout, scheduler)


def random_inputs(workload: Workload) -> tuple[TextInputs, np.ndarray]:
    """Return random text conditioning, [branches, B, ...] each, and latents of unit variance, [B, h, w, C]."""
    height, width = workload.latents
    shapes = input_shapes(
        workload.model.unet,
        guided=workload.branches == 2,
        pictures=workload.pictures,
        height=height,
        width=width,
        channels=workload.model.vae.latent_channels,
        time_ids=5 if workload.model.index.get("requires_aesthetics_score") else 6,
    )
    rng = np.random.default_rng(1)
    text, latents = jax.tree.map(lambda x: rng.standard_normal(x.shape, dtype=np.float32), shapes)
    return text._replace(time_ids=np.full_like(text.time_ids, 1024)), latents


def _compiled(call: loop.LoopCall, layout: Parallel, repeats: int) -> dict[str, TimedFunction]:
    functions: dict[str, TimedFunction] = {}
    before: loop.PhaseProgram | None = None
    for phase in loop.phases(layout):
        if before is not None:  # a phase starts from the carry that the one before leaves
            call = call.with_carry(prepared(before, call)()[0])
        before = loop.compile_phase(call, phase)
        functions[phase.name] = TimedFunction(partial(prepared, before, call), repeats, before.compile_seconds)
    return functions


def prepared(program: loop.PhaseProgram, call: loop.LoopCall) -> Callable[[], tuple]:
    """Return a run of the program on a copy of the carry, which it consumes."""
    inputs = jax.block_until_ready(call.with_carry(jax.tree.map(jnp.copy, call.inputs.carry)).inputs)
    return lambda: program.executable(*inputs)

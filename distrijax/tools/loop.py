"""The denoising loop as the tools use it: its phases, the inputs of its program, and how that program is compiled."""

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr
from jax.stages import Compiled
from jax.typing import DTypeLike

from distrijax.config import UNetConfig
from distrijax.models.unet import UNet
from distrijax.nn.module import Weights
from distrijax.parallel.options import Parallel
from distrijax.parallel.phases import Phase
from distrijax.parallel.placement import place
from distrijax.runtime.compile import compile_with
from distrijax.runtime.xla_options import Options
from distrijax.sampling import programs
from distrijax.sampling.denoise import Carry
from distrijax.sampling.guidance import Guidance
from distrijax.sampling.inputs import LoopInputs, TextInputs, abstract_inputs, input_shapes, loop_inputs
from distrijax.schedulers import EulerDiscreteScheduler, Scheduler
from distrijax.tools.workload import Workload

SCHEDULER = EulerDiscreteScheduler()  # the choice hardly matters: any step costs next to nothing beside the U-Net


def phases(parallel: Parallel) -> list[Phase]:
    """Return the phases of a picture that has every one."""
    return [phase for _, phase in parallel.phases(parallel.warmup_steps + 2)]


@dataclasses.dataclass(frozen=True)
class LoopCall:
    """A call of the denoising program.

    Attributes:
        inputs: weights, carry, per-step arrays, conditioning and guidance: arrays or their shapes.
        static: the arguments that are compiled in, by name, but for the phase.
    """

    inputs: LoopInputs
    static: Mapping[str, Any]

    @property
    def carry(self) -> Carry:
        return self.inputs.carry

    def with_carry(self, carry: Carry) -> "LoopCall":
        """Return the same call with the carry that an earlier call returned."""
        return dataclasses.replace(self, inputs=self.inputs._replace(carry=carry))


def abstract_call(
    config: UNetConfig,
    parallel: Parallel,
    *,
    height: int,
    width: int,
    dtype: DTypeLike,
    guided: bool = True,
    pictures: int = 1,
    steps: int = 5,
    scheduler: Scheduler = SCHEDULER,
) -> LoopCall:
    """Return a call of the first steps of a picture, with shapes in place of arrays.

    Args:
        height: rows of the latents.
        width: columns of the latents.
        steps: the number that one call takes.
    """
    inputs, layout = abstract_inputs(
        config,
        parallel=parallel,
        scheduler=scheduler,
        height=height,
        width=width,
        dtype=dtype,
        guided=guided,
        pictures=pictures,
        steps=steps,
    )
    return LoopCall(inputs, {"parallel": parallel.program_key, "layout": layout, "scheduler": scheduler})


def random_call(workload: Workload, unet: UNet, parallel: Parallel) -> LoopCall:
    """Return a call of `workload.steps` first steps of a picture, with random latents and text, on the devices."""
    text, latents = random_inputs(workload)
    layout = workload.layout(parallel)
    schedule = SCHEDULER.schedule(max(workload.steps, 30))[: workload.steps]
    inputs = loop_inputs(
        Weights.of(unet),
        text,
        latents * np.float32(schedule.init_noise_sigma),
        None,
        Guidance.of(5.0 if workload.branches == 2 else None),
        schedule,
        scheduler=SCHEDULER,
        parallel=parallel,
        layout=layout,
        condition=jax.jit(programs.condition, static_argnames="parallel"),
    ).with_steps(slice(None), parallel)
    return LoopCall(inputs, {"parallel": parallel.program_key, "layout": layout, "scheduler": SCHEDULER})


def random_inputs(workload: Workload) -> tuple[TextInputs, np.ndarray]:
    """Return random text conditioning, [branches, B, ...] each, and latents of unit variance, [B, h, w, C]."""
    height, width = workload.latents
    ids = 5 if workload.model.index.get("requires_aesthetics_score") else 6
    shapes = input_shapes(
        workload.model.unet,
        guided=workload.branches == 2,
        pictures=workload.pictures,
        height=height,
        width=width,
        channels=workload.model.vae.latent_channels,
        time_ids=ids,
    )
    rng = np.random.default_rng(1)
    text, latents = jax.tree.map(lambda x: rng.standard_normal(x.shape, dtype=np.float32), shapes)
    return text._replace(time_ids=np.full_like(text.time_ids, 1024)), latents


def trace(call: LoopCall, phase: Phase) -> tuple[Jaxpr, LoopCall]:
    """Return the traced program of `phase` as a jaxpr, and the call of the phase after it, as shapes."""
    program = partial(programs.denoise, phase=phase, **call.static)
    closed, (carry, _, _) = jax.make_jaxpr(program, return_shape=True)(*call.inputs)
    return closed.jaxpr, call.with_carry(carry)


@dataclasses.dataclass(frozen=True)
class PhaseProgram:
    """The compiled program of one phase.

    Attributes:
        after: the call of the phase after it, as shapes.
        trace_seconds, compile_seconds: the time that tracing and then compilation took.
    """

    executable: Compiled
    after: LoopCall
    trace_seconds: float
    compile_seconds: float


def compile_phase(call: LoopCall, phase: Phase, options: Options | None = None) -> PhaseProgram:
    """Compile the program of `phase` for these inputs as the pipeline does.

    Args:
        options: XLA's compiler options besides ours.
    """
    start = time.perf_counter()
    program = programs.denoising("denoising", lambda message: None)
    lowered = program.lower(*call.inputs, **call.static, phase=phase)
    traced = time.perf_counter()
    ours = programs.denoising_options(*call.inputs, **call.static, phase=phase)
    executable = compile_with(lowered, {**ours, **(options or {})})
    carry = place(_shapes(lowered.out_info[0]), programs.CARRY, call.static["parallel"])
    return PhaseProgram(executable, call.with_carry(carry), traced - start, time.perf_counter() - traced)


def _shapes(tree: Carry) -> Carry:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

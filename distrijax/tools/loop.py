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

from distrijax import compiler_options
from distrijax.compile import compile_with
from distrijax.config import UNetConfig
from distrijax.denoise import Carry, Guidance, Steps
from distrijax.models.unet import UNet
from distrijax.parallel.mesh import Parallel
from distrijax.pipelines import programs
from distrijax.pipelines.arguments import TOKENS, arguments, placed
from distrijax.schedulers import EulerDiscreteScheduler, Scheduler
from distrijax.tools.workload import Workload

SCHEDULER = EulerDiscreteScheduler()  # the choice hardly matters: any step costs next to nothing beside the U-Net
Text = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps that one compiled program runs: "synchronous" or "displaced"."""

    name: str
    displaced: bool


def phases(parallel: Parallel, steps: int | None = None) -> list[tuple[int, Phase]]:
    """Return the phases of a picture and the number of steps of each; by default of a picture that has every phase."""
    if steps is None:
        steps = parallel.warmup_steps + 2
    synchronous = parallel.synchronous_steps(steps)
    counted = [(synchronous, Phase("synchronous", False)), (steps - synchronous, Phase("displaced", True))]
    return [(count, phase) for count, phase in counted if count]


@dataclasses.dataclass(frozen=True)
class LoopCall:
    """A call of the denoising program.

    Attributes:
        inputs: weights, carry, per-step arrays, conditioning and guidance: arrays or their shapes.
        static: the arguments that are compiled in, by name.
    """

    inputs: tuple[Any, ...]
    static: Mapping[str, Any]

    @property
    def carry(self) -> Carry:
        carry: Carry = self.inputs[1]
        return carry

    def with_carry(self, carry: Carry) -> "LoopCall":
        """Return the same call with the carry that an earlier call returned."""
        return dataclasses.replace(self, inputs=(self.inputs[0], carry, *self.inputs[2:]))


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
        height, width: of the latents.
        steps: the number that one call takes.
    """
    inputs, static = arguments(
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
    return LoopCall(inputs, static)


def random_call(workload: Workload, unet: UNet, parallel: Parallel) -> LoopCall:
    """Return a call of `workload.steps` first steps of a picture, with random latents and text, on the devices."""
    slabs, (height, width) = workload.slabs(parallel), workload.latents
    shape = workload.pictures, height, width, workload.model.unet.in_channels
    latents = slabs.pad(np.random.default_rng(2).standard_normal(shape, dtype=np.float32), 1)
    schedule = SCHEDULER.schedule(max(workload.steps, 30))[: workload.steps]
    conditioning = jax.jit(partial(programs.condition, parallel=parallel.compiled))
    scales = ([-4.0, 5.0], [0.0, 1.0]) if workload.branches == 2 else ([1.0], [1.0])
    inputs = (
        unet,
        parallel.place(Carry(latents * schedule.init_noise_sigma, SCHEDULER.init_state(latents)), programs.CARRY),
        parallel.place(Steps(schedule.rows, schedule.timesteps, None), programs.STEPS),
        conditioning(unet, *parallel.place(random_text(workload), programs.TEXT)),
        parallel.place(Guidance(*(np.asarray(x, np.float32) for x in scales)), programs.GUIDANCE),
    )
    return LoopCall(inputs, {"parallel": parallel.compiled, "rows": slabs, "scheduler": SCHEDULER})


def random_text(workload: Workload) -> Text:
    """Return what `UNet.condition` takes, [branches, B, ...]: context, pooled vector, time ids, LCM's guidance."""
    config, rng, lead = workload.model.unet, np.random.default_rng(1), (workload.branches, workload.pictures)
    ids = 5 if workload.model.index.get("requires_aesthetics_score") else 6
    pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
    guidance = config.time_cond_proj_dim
    return (
        rng.standard_normal((*lead, TOKENS, config.cross_attention_dim), dtype=np.float32),
        rng.standard_normal((*lead, pooled), dtype=np.float32),
        np.full((*lead, ids), 1024, np.float32),
        rng.standard_normal((*lead, guidance), dtype=np.float32) if guidance else None,
    )


def trace(call: LoopCall, phase: Phase) -> tuple[Jaxpr, LoopCall]:
    """Return the traced program of `phase` as a jaxpr, and the call of the phase after it, as shapes."""
    program = partial(programs.denoise, displaced=phase.displaced, **call.static)
    closed, (carry, _) = jax.make_jaxpr(program, return_shape=True)(*call.inputs)
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


def compile_phase(call: LoopCall, phase: Phase, options: Mapping[str, object] | None = None) -> PhaseProgram:
    """Compile the program of `phase` for these inputs as the pipeline does.

    Args:
        options: XLA's compiler options besides ours.
    """
    start = time.perf_counter()
    program = programs.denoising("denoising", lambda message: None)
    lowered = program.lower(*call.inputs, **call.static, displaced=phase.displaced)
    traced = time.perf_counter()
    parallel: Parallel = call.static["parallel"]
    platform = parallel.mesh.devices.flat[0].platform
    ours = compiler_options.denoising(platform, call.carry.pieces, parallel.data * parallel.cfg)
    executable = compile_with(lowered, {**ours, **(options or {})})
    carry = placed(parallel, lowered.out_info[0], programs.CARRY)
    return PhaseProgram(executable, call.with_carry(carry), traced - start, time.perf_counter() - traced)

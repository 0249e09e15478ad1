"""The denoising loop as the tools use it: its phases, the inputs of its program, and how that program is compiled."""

import dataclasses
import time
from functools import partial
from typing import Any

import jax
from jax.extend.core import Jaxpr
from jax.stages import Compiled

from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.options import Parallel
from distrijax.parallel.phases import Phase
from distrijax.parallel.placement import place
from distrijax.parallel.transport import MESH, Transport
from distrijax.runtime.compile import compile_with
from distrijax.runtime.xla_options import Options
from distrijax.sampling import programs
from distrijax.sampling.denoise import Carry
from distrijax.sampling.inputs import LoopInputs
from distrijax.schedulers import EulerDiscreteScheduler, Scheduler

SCHEDULER = EulerDiscreteScheduler()  # the choice hardly matters: any step costs next to nothing beside the U-Net


@dataclasses.dataclass(frozen=True)
class LoopCall:
    """A call of the denoising program, whose inputs are arrays or their shapes."""

    inputs: LoopInputs
    parallel: Parallel
    layout: SlabLayout
    scheduler: Scheduler = SCHEDULER
    transport: Transport = MESH

    @property
    def static(self) -> dict[str, Any]:
        """The arguments that are compiled in, but for the phase."""
        names = ("layout", "scheduler", "transport")
        return {"parallel": self.parallel.program_key} | {name: getattr(self, name) for name in names}

    def with_carry(self, carry: Carry) -> "LoopCall":
        """Return the same call with the carry that an earlier call returned."""
        return dataclasses.replace(self, inputs=self.inputs._replace(carry=carry))


def phases(parallel: Parallel) -> list[Phase]:
    """Return the phases of a picture that has every one."""
    return [phase for _, phase in parallel.phases(parallel.warmup_steps + 2)]


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
        compile_seconds: the time that tracing and compilation took.
    """

    executable: Compiled
    after: LoopCall
    compile_seconds: float


def compile_phase(call: LoopCall, phase: Phase, options: Options | None = None) -> PhaseProgram:
    """Compile the program of `phase` for these inputs as the pipeline does.

    Args:
        options: XLA's compiler options besides ours.
    """
    start = time.perf_counter()
    traced = programs.denoising("denoising", lambda message: None).trace(*call.inputs, **call.static, phase=phase)
    ours = programs.denoising_options(*call.inputs, **call.static, phase=phase)
    executable = compile_with(traced.lower(), {**ours, **(options or {})})
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), traced.out_info[0])
    after = call.with_carry(place(shapes, programs.CARRY, call.parallel))
    return PhaseProgram(executable, after, time.perf_counter() - start)

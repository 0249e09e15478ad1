"""A step on one card, or one of N cards' share of a displaced step, as XLA compiles it by default or otherwise."""

import dataclasses
import gzip
import time
import traceback
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from distrijax.errors import DistrijaxError
from distrijax.parallel.phases import Phase
from distrijax.tools import loop
from distrijax.tools.bench.steps import prepared, share_call, share_layout
from distrijax.tools.bench.timing import RunSettings, TimedFunction, take_turns
from gpu import profile
from gpu.results import Json
from gpu.setup import Setup
from gpu.variants import VARIANTS, Variant

PLAIN = Variant()
NO_GRAPHS = Variant({"xla_gpu_enable_command_buffer": ""})


@dataclasses.dataclass(frozen=True)
class Step:
    """A call of the denoising program that takes `count` steps of a phase."""

    call: loop.LoopCall
    phase: Phase
    count: int
    runs: RunSettings
    dtype: str

    @classmethod
    def of(cls, setup: Setup, size: int, devices: int) -> "Step":
        """Return the last phase's steps. What an earlier phase would have left for them is drawn at random."""
        workload = setup.workload(size)
        layout = share_layout(workload, devices, cfg=min(devices, 2))
        call = share_call(workload, setup.unet, layout)
        *earlier, phase = loop.phases(layout)
        rng = np.random.default_rng(2)

        def draw(x: jax.ShapeDtypeStruct) -> jax.Array:  # positive: variances are among them
            return jnp.asarray(rng.uniform(0.1, 1, x.shape).astype(x.dtype))

        for before in earlier:
            pieces = loop.trace(call, before)[1].inputs.carry.pieces
            call = call.with_carry(dataclasses.replace(call.inputs.carry, pieces=jax.tree.map(draw, pieces)))
        return cls(call, phase, workload.steps, setup.runs(size), setup.dtype)

    def compiled(self, variant: Variant) -> loop.PhaseProgram:
        with variant.active(), warnings.catch_warnings():
            # An option that this JAX does not know would be dropped, and the variant would be the default.
            warnings.filterwarnings("error", message=".*does not support the compiler option")
            return loop.compile_phase(self.call, self.phase, variant.options)

    def latents(self, program: loop.PhaseProgram) -> np.ndarray:
        return np.asarray(prepared(program, self.call)()[0].latents, np.float64)

    def plan(self, program: loop.PhaseProgram) -> profile.Plan:
        return profile.plan(program.executable.as_text() or "", self.dtype, jax.devices()[0].device_kind)


def measure(setup: Setup, size: int, devices: int) -> Json:
    """Time a step, with its kernels by kind."""
    step = Step.of(setup, size, devices)
    program = step.compiled(PLAIN)
    (times,) = _times(step, {"default": program}).values()
    return times | _kernels(step, program)


def compare(setup: Setup, size: int, devices: int, name: str) -> Json:
    """Time a step in turn with the same step compiled as a variant, by name."""
    if VARIANTS[name].tunes:
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    step = Step.of(setup, size, devices)
    programs = {"default": step.compiled(PLAIN), "variant": step.compiled(VARIANTS[name])}
    times = _times(step, programs)
    default, variant = (np.median(times[which]["step_ms"]) for which in programs)
    ours, theirs = map(step.latents, programs.values())
    return {
        **times["variant"],
        **_kernels(step, programs["variant"]),
        "default_step_ms": times["default"]["step_ms"],
        "relative_time": float(variant / default),
        "relative_difference": float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours)),
    }


def operations(setup: Setup, size: int, devices: int) -> Json:
    """Profile a step with CUDA graphs off, where each kernel tells its instruction; keep the program."""
    step = Step.of(setup, size, devices)
    program = step.compiled(NO_GRAPHS)
    with gzip.open(setup.results.folder / f"program-{size}-of-{devices}.txt.gz", "wt") as file:
        file.write(program.executable.as_text() or "")
    jax.block_until_ready(prepared(program, step.call)())
    events, planned = profile.trace(prepared(program, step.call)), step.plan(program)
    return profile.by_kind(events, planned, step.count) | {"longest": profile.longest(events, planned, step.count)}


def _times(step: Step, programs: dict[str, loop.PhaseProgram]) -> dict[str, Json]:
    """Time programs in turn."""
    functions = {
        name: TimedFunction(partial(prepared, program, step.call), step.count, program.compile_seconds)
        for name, program in programs.items()
    }
    return {
        line.name: {
            "step_ms": [round(1000 * seconds, 3) for seconds in line.seconds],
            "steps": step.count,
            "dispatch_ms": _dispatch(programs[line.name], step),
            "compile_seconds": round(line.compile_seconds or 0, 1),
        }
        for line in take_turns(functions, step.runs)
    }


def _dispatch(program: loop.PhaseProgram, step: Step) -> float:
    """Return the milliseconds until a call returns: the host's, unless the device is so far behind that it waits."""
    run = prepared(program, step.call)
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    jax.block_until_ready(result)
    return round(1000 * seconds, 3)


def _kernels(step: Step, program: loop.PhaseProgram) -> Json:
    """Return what else is known of a program; if the plan or the profiler fails, its error beside the times."""
    planned: profile.Plan = {}
    kernels = Json()
    try:
        planned = step.plan(program)
    except DistrijaxError as error:  # the plan cannot tell what a kernel of the variant's own computes
        kernels["plan_error"] = str(error)
    try:
        events = profile.trace(prepared(program, step.call))
        kernels["kernels"] = profile.by_kind(events, planned, step.count)
    except Exception:
        kernels["profile_error"] = traceback.format_exc()
    memory, stats = program.executable.memory_analysis(), jax.local_devices()[0].memory_stats() or {}
    return kernels | {
        "planned_flops": sum(kernel.flops for kernel in planned.values()) or None,
        "finite": bool(np.isfinite(step.latents(program)).all()),
        "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
        "peak_bytes_of_process": stats.get("peak_bytes_in_use"),
    }

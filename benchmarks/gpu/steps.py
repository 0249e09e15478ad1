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


def measure(setup: Setup, size: int, devices: int) -> Json:
    """Time a step, with its kernels by kind."""
    call, phase = _call(setup, size, devices)
    program = _compiled(call, phase, PLAIN)
    (times,) = _times(call, {"default": program}, setup.runs(size)).values()
    return times | _memory(program) | _kernels(setup, program, call)


def compare(setup: Setup, size: int, devices: int, name: str) -> Json:
    """Time a step in turn with the same step compiled as a variant, by name."""
    if VARIANTS[name].tunes:
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    call, phase = _call(setup, size, devices)
    programs = {"default": _compiled(call, phase, PLAIN), "variant": _compiled(call, phase, VARIANTS[name])}
    times = _times(call, programs, setup.runs(size))
    ours, theirs = (np.asarray(prepared(program, call)()[0].latents, np.float64) for program in programs.values())
    variant = times["variant"] | _memory(programs["variant"]) | _kernels(setup, programs["variant"], call)
    return variant | {
        "default_step_ms": times["default"]["step_ms"],
        "relative_time": _median(times["variant"]) / _median(times["default"]),
        "relative_difference": float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours)),
    }


def operations(setup: Setup, size: int, devices: int) -> Json:
    """Profile a step with CUDA graphs off, where each kernel tells its instruction; keep the program."""
    call, phase = _call(setup, size, devices)
    program = _compiled(call, phase, NO_GRAPHS)
    with gzip.open(setup.results.folder / f"program-{size}-of-{devices}.txt.gz", "wt") as file:
        file.write(program.executable.as_text() or "")
    jax.block_until_ready(prepared(program, call)())
    events, planned = profile.trace(prepared(program, call)), _planned(program, setup)
    steps = _steps(call)
    return profile.by_kind(events, planned, steps) | {"longest": profile.longest(events, planned, steps)}


def _call(setup: Setup, size: int, devices: int) -> tuple[loop.LoopCall, Phase]:
    """Return the last phase's call. What an earlier phase would have left for it is drawn at random."""
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
    return call, phase


def _compiled(call: loop.LoopCall, phase: Phase, variant: Variant) -> loop.PhaseProgram:
    with variant.active(), warnings.catch_warnings():
        # An option that this JAX does not know would be dropped, and the variant would be the default.
        warnings.filterwarnings("error", message=".*does not support the compiler option")
        return loop.compile_phase(call, phase, variant.options)


def _times(call: loop.LoopCall, programs: dict[str, loop.PhaseProgram], runs: RunSettings) -> dict[str, Json]:
    """Time programs in turn: milliseconds of each run, a step; and of the host for a dispatch."""
    functions = {
        name: TimedFunction(partial(prepared, program, call), _steps(call), program.compile_seconds)
        for name, program in programs.items()
    }
    lines = take_turns(functions, runs)
    return {
        line.name: {
            "step_ms": [round(1000 * seconds, 3) for seconds in line.seconds],
            "steps": _steps(call),
            "host_ms": _host(programs[line.name], call),
            "compile_seconds": round(line.compile_seconds or 0, 1),
        }
        for line in lines
    }


def _host(program: loop.PhaseProgram, call: loop.LoopCall) -> float:
    """Return milliseconds until a dispatch returns: what the host takes for it, or waits until the card takes it."""
    run = prepared(program, call)
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    jax.block_until_ready(result)
    return round(1000 * seconds, 3)


def _kernels(setup: Setup, program: loop.PhaseProgram, call: loop.LoopCall) -> Json:
    """Return what else is known of a step; if the profiler fails, its traceback beside the times."""
    planned, kernels = _planned(program, setup), Json()
    try:
        kernels["kernels"] = profile.by_kind(profile.trace(prepared(program, call)), planned, _steps(call))
    except Exception:
        kernels["profile_error"] = traceback.format_exc()
    return kernels | {
        "finite": bool(jnp.isfinite(prepared(program, call)()[0].latents).all()),
        "planned_flops": sum(kernel.flops for kernel in planned.values()),
    }


def _planned(program: loop.PhaseProgram, setup: Setup) -> profile.Plan:
    return profile.plan(program.executable.as_text() or "", setup.dtype, jax.devices()[0].device_kind)


def _memory(program: loop.PhaseProgram) -> Json:
    stats = jax.local_devices()[0].memory_stats() or {}
    memory = program.executable.memory_analysis()
    return {
        "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
        "peak_bytes_of_process": stats.get("peak_bytes_in_use"),
    }


def _steps(call: loop.LoopCall) -> int:
    return len(call.inputs.steps.timesteps)


def _median(times: Json) -> float:
    return float(np.median(times["step_ms"]))

"""The host's part of a dispatch: the programs of a picture, called with their own arguments, in place of which an empty
program runs."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from distrijax.parallel.options import Parallel
from distrijax.runtime.compile import Prepared, Program, key_of
from distrijax.sampling.inputs import LoopInputs
from distrijax.tools.bench import weights
from distrijax.tools.bench.timing import TimedFunction
from distrijax.tools.workload import Workload

REPEATS = 20


def dispatches(workload: Workload, parallel: Parallel) -> dict[str, TimedFunction]:
    """Return a dispatch of every program of a picture, and what is done once a picture; no weights are needed."""
    pipe = weights.pipeline(workload.model, workload.dtype, parallel, read=False)
    calls: dict[Program, tuple[tuple, dict[str, Hashable]]] = {}

    def note(program: Program, *args: object, **static: Hashable) -> Prepared:
        calls[program] = args, static
        return Prepared(program, program.trace(*args, **static).out_info, Future())

    for program in pipe.programs.all:
        vars(program)["prepare"] = partial(note, program)
    pipe._begin_compiling(
        [""] * workload.pictures,
        height=workload.height,
        width=workload.width,
        num_inference_steps=parallel.warmup_steps + 2,
        guidance_scale=5.0 if workload.guided else 1.0,
    )
    functions = {program.name: _repeated(_dispatch(program, *call, parallel)) for program, call in calls.items()}
    return functions | {"weights, once a picture": _repeated(pipe.place_parts)}


def _dispatch(program: Program, args: tuple, static: dict[str, Hashable], parallel: Parallel) -> Callable[[], object]:
    small: Any = jax.tree.map(lambda x: jnp.zeros((1,) * x.ndim, x.dtype, device=parallel.replicated), args)
    if loops := "phase" in static:
        small = tuple(LoopInputs(*small).with_turns(0, 1, parallel))
    empty = jax.jit(lambda *args: jnp.int32(0), keep_unused=True).lower(*small).compile()
    program._called[key_of(small, static)] = empty
    if loops:  # which places the numbers of its steps each time
        return lambda: program(*LoopInputs(*small).with_turns(0, 1, parallel), **static)
    return lambda: program(*small, **static)


def _repeated(function: Callable[[], object]) -> TimedFunction:
    return TimedFunction(lambda: lambda: [function() for _ in range(REPEATS)][-1], REPEATS)

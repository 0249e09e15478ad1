"""The denoising stage: dispatch of compiled steps, and the progress bar."""

import dataclasses
import time
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

import jax
from jax import Array
from tqdm import tqdm

from distrijax.pipelines.callback import Held, call_back
from distrijax.pipelines.finite import check_steps
from distrijax.runtime.processes import is_first
from distrijax.sampling.inputs import LoopInputs

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline
    from distrijax.pipelines.stages import Call


def static_arguments(pipe: "SDXLPipeline", call: "Call") -> dict[str, Any]:
    """Return the static arguments of the denoising program that all of a call's phases share."""
    layout = pipe.layout(call.shape[2])
    shared = {"parallel": call.parallel.program_key, "layout": layout, "scheduler": pipe.scheduler}
    return shared | {"after_step": call.maps.after_step}


def run_loop(pipe: "SDXLPipeline", call: "Call", inputs: LoopInputs, held: Held) -> Array:
    """Take all steps and return the latents [B, >= h, W, C], whose rows past the picture's are padding.

    A dispatch takes several steps without the host, and the next one is queued before it ends, so the devices never
    wait; the host waits for its end only to advance the bar. A dispatch ends where a callback has its turn. Each
    evaluation of the U-Net counts as a step, except for the bar and the warm-up.
    """
    parallel, callback, schedule = call.parallel, call.callback, call.schedule
    total, start, length = len(schedule), 0, 1
    phase_of_step = [phase for count, phase in parallel.phases(schedule.steps) for _ in range(count)]
    phases = [phase_of_step[step] for step in schedule.step_of]
    # steps done after each number of evaluations: a step is done when the next one begins
    done = [0, *schedule.step_of[1:], schedule.steps]
    if parallel.policy.carries and not phases[-1].policy.carries and is_first():
        warnings.warn(
            f"all {schedule.steps} steps are synchronous: the first and warmup_steps={parallel.warmup_steps} more; "
            "with a lower warmup_steps, transfers overlap with computation in the others",
            stacklevel=6,
        )
    static, running = static_arguments(pipe, call), deque[tuple[Array, int, int]]()
    table, placed = inputs.steps, range(0)
    pipe.begin_steps(total, call.guidance_scale, call.guidance_rescale)
    with tqdm(total=schedule.steps, **{"desc": "denoising", "unit": "step"} | pipe.progress_options) as bar:
        ended = time.perf_counter()
        while start < total and not pipe.interrupted:
            phase = phases[start]
            stop = min(start + length, start + phases[start:].count(phase))
            if callback is not None:
                stop = min(stop, callback.next_turn(start))
            if stop > placed.stop:
                table, placed = inputs.with_steps(start, stop, parallel).steps, range(start, start + inputs.rows)
            now = inputs._replace(steps=table).with_turns(start - placed.start, stop - placed.start, parallel)
            if not (phase.policy.carries or parallel.policy.predicts):
                # No step uses what the dispatch before left. Without it, all dispatches run the first one's program.
                now = now._replace(carry=dataclasses.replace(now.carry, pieces=None))
            carry, finite, _ = pipe.programs.denoise[phase.name](*now, **static, phase=phase)
            running.append((finite, start, stop))
            inputs = inputs._replace(carry=carry)
            if callback is not None and stop == callback.next_turn(start):
                inputs, held = call_back(pipe, call, callback, inputs, held, stop - 1, finite)
            start = stop
            last = start == total or pipe.interrupted
            while len(running) > (not last):  # one more may run while the host waits
                finite, first, end = running.popleft()
                check_steps(finite, schedule.step_of[first], schedule.step_of[end - 1] + 1, schedule.steps, pipe.dtype)
                bar.update(int(done[end] - done[first]))
                before, ended = ended, time.perf_counter()
                length = min(inputs.rows, dispatch_length(total, (ended - before) / (end - first)))
    return inputs.carry.latents


def dispatch_length(total: int, seconds: float) -> int:
    """Return the number of steps to dispatch at once: eight dispatches a picture, but more if that takes over a second.

    Args:
        seconds: that a step takes, so that the bar moves at each slow step. Processes measure different ones but must
            dispatch the same, so several go without.
    """
    few = -(-total // 5)  # the first two are of one step, and one ends where the phase does
    return few if jax.process_count() > 1 else max(1, min(few, int(1 / max(seconds, 1e-9))))

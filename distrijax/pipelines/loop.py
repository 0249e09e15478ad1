"""The denoising stage: dispatch of compiled steps, the progress bar, and the callback after each step."""

import dataclasses
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array
from tqdm import tqdm

from distrijax.errors import DistrijaxError
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.options import Parallel
from distrijax.parallel.phases import Phase
from distrijax.parallel.placement import place
from distrijax.pipelines.callback import CALLBACK_INPUTS, Callback
from distrijax.runtime.processes import is_first
from distrijax.sampling import programs
from distrijax.sampling.denoise import Carry
from distrijax.sampling.inputs import LoopInputs, TextInputs, pad_rows
from distrijax.schedulers import Schedule

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline

_TEXT_FIELDS = {"prompt_embeds": "context", "add_text_embeds": "pooled", "add_time_ids": "time_ids"}

QUEUED = 2
"""Segments that the devices may lag behind the host."""


def run_loop(
    pipe: "SDXLPipeline",
    inputs: LoopInputs,
    text: TextInputs,
    schedule: Schedule,
    layout: SlabLayout,
    callback: Callback | None,
) -> Array:
    """Take all steps and return the latents [B, >= h, W, C], whose rows past the picture's are padding.

    A compiled scan takes several steps without the host, and the next one is queued before it ends, so the devices
    never wait; the host waits for the end of a segment only to advance the bar. With a callback, each segment is one
    step.
    """
    total = len(schedule)
    ends: deque[tuple[Array, int]] = deque()
    pipe.interrupt = False
    carry = inputs.carry
    choices = {"parallel": pipe.parallel.program_key, "layout": layout, "scheduler": pipe.scheduler}
    with tqdm(total=total, **{"desc": "denoising", "unit": "step"} | pipe.progress_options) as bar:
        for part, phase in segments(pipe.parallel, total, one_by_one=callback is not None):
            if not phase.policy.carries:
                # No step uses what the segment before left. Without it, all segments run the first one's program.
                carry = dataclasses.replace(carry, pieces=None)
            now = inputs._replace(carry=carry).with_steps(part, pipe.parallel)
            carry, end, _ = pipe.programs.denoise[phase.name](*now, **choices, phase=phase)
            ends.append((end, part.stop - part.start))
            if callback is not None:
                step = part.start
                carry, text, changed = _call_back(pipe, callback, step, schedule.timesteps[step], carry, text, layout)
                if changed:
                    placed: Any = place(text, programs.TEXT, pipe.parallel)
                    cond = pipe.programs.condition(inputs.unet, *placed, parallel=pipe.parallel.program_key)
                    inputs = inputs._replace(cond=cond)
            last = part.stop == total or pipe.interrupt
            while len(ends) > (0 if last else QUEUED):
                end, length = ends.popleft()
                end.block_until_ready()
                bar.update(length)
            if last:
                break
    return carry.latents


def segments(parallel: Parallel, total: int, *, one_by_one: bool) -> Iterator[tuple[slice, Phase]]:
    """Yield the steps of each dispatch and their phase."""
    phases, start = parallel.phases(total), 0
    if parallel.policy.carries and len(phases) == 1 and is_first():
        warnings.warn(
            f"all {total} steps are synchronous: the first and warmup_steps={parallel.warmup_steps} more; with a "
            "lower warmup_steps, transfers overlap with computation in the others",
            stacklevel=6,
        )
    for count, phase in phases:
        length = 1 if one_by_one else segment_length(count)
        for _ in range(0, count, length):
            yield slice(start, start + length), phase
            start += length


def segment_length(steps: int, segments: int = 8) -> int:
    """Return the steps per dispatch: a divisor of `steps`, so one program serves all segments, `segments` or more."""
    return next(k for k in range(max(1, steps // segments), 0, -1) if steps % k == 0)


def _call_back(
    pipe: "SDXLPipeline",
    callback: Callback,
    step: int,
    timestep: float,
    carry: Carry,
    text: TextInputs,
    layout: SlabLayout,
) -> tuple[Carry, TextInputs, bool]:
    """Run the callback; return the carry and text with its replacements, and whether the text has changed."""
    tensors: dict[str, Any] = {name: _flat(getattr(text, field)) for name, field in _TEXT_FIELDS.items()}
    if "latents" in callback.inputs:
        latents = pipe.programs.crop(carry.latents, parallel=pipe.parallel.program_key, height=layout.height)
        tensors["latents"] = latents.transpose(0, 3, 1, 2)
    result = callback.function(pipe, step, timestep, {name: tensors[name] for name in callback.inputs}) or {}
    if not isinstance(result, Mapping):
        raise DistrijaxError(f"callback_on_step_end returned {result!r}; it may return a dictionary or nothing")
    if unknown := sorted(set(result) - set(CALLBACK_INPUTS)):
        raise DistrijaxError(
            f"callback_on_step_end returned {', '.join(unknown)}; it may return {', '.join(CALLBACK_INPUTS)}"
        )
    if "latents" in result:
        shape = (carry.latents.shape[0], carry.latents.shape[3], layout.height, carry.latents.shape[2])
        value = _same_shape("latents", result["latents"], shape).astype(np.float32).transpose(0, 2, 3, 1)
        placed: Any = place(pad_rows(value, layout, axis=1), programs.LATENTS, pipe.parallel)
        carry = dataclasses.replace(carry, latents=placed)
    changed = {}
    for name, field in _TEXT_FIELDS.items():
        if name in result:  # even the same array, which the callback may have changed in place
            before = getattr(text, field)
            value = _same_shape(name, result[name], tensors[name].shape)
            changed[field] = value.astype(before.dtype).reshape(before.shape)
    return carry, text._replace(**changed), bool(changed)


def _flat(x: Any) -> np.ndarray:  # [branches, B, ...] -> [branches * B, ...], as diffusers has it
    """Return a copy: JAX may read `x` itself while a callback writes to what it was given."""
    return np.array(x).reshape(-1, *x.shape[2:])


def _same_shape(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != shape:
        raise DistrijaxError(
            f"callback_on_step_end returned {name} of shape {array.shape}; it must keep the shape {shape}"
        )
    return array

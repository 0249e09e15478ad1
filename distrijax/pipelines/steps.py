"""The steps of a call: all of the scheduler's, or the part that this pipeline takes."""

from collections.abc import Sequence

import numpy as np

from distrijax.checks import finite_number
from distrijax.errors import DistrijaxError
from distrijax.schedulers import Schedule, Scheduler


def call_schedule(
    scheduler: Scheduler,
    num_inference_steps: int,
    timesteps: Sequence[float] | str | None,
    sigmas: Sequence[float] | None,
    eta: float,
    *,
    strength: float | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
) -> Schedule:
    """Return the steps of a call, by diffusers' rules.

    The arguments are those of a call; without `strength`, it takes all steps.

    Raises:
        DistrijaxError: a value is invalid, or no step is left.
    """
    custom = (timesteps is not None and not isinstance(timesteps, str)) or sigmas is not None
    steps = None if custom else num_inference_steps

    def steps_from(start: int) -> Schedule:
        return scheduler.schedule(steps, timesteps=timesteps, sigmas=sigmas, eta=eta, start=start)

    first, last = (_cutoff(scheduler, n, v) for n, v in (("start", denoising_start), ("end", denoising_end)))
    if strength is not None:
        strength = finite_number("strength", strength, 0, 1)
    if denoising_start is not None and denoising_end is not None and denoising_start >= denoising_end:
        raise DistrijaxError(
            f"denoising_start is {denoising_start} and denoising_end {denoising_end}; the end must come after the start"
        )
    schedule = steps_from(0)
    total = schedule.steps
    if first is not None:
        below = np.flatnonzero(schedule.timesteps < first)
        if not len(below):
            raise DistrijaxError(f"denoising_start {denoising_start} leaves none of {total} steps; lower it")
        # of a step with two evaluations of the U-Net, both, from the first one on
        schedule = steps_from((len(schedule) - len(below)) // scheduler.order)
    elif strength is not None:
        count = min(int(total * strength), total)
        if not count:
            raise DistrijaxError(
                f"strength is {strength} of {total} steps, which leaves none to take; raise strength to "
                f"{1 / total:.2g} or more, or take more steps"
            )
        schedule = steps_from(total - count)
    if last is not None:
        count = int(np.sum(schedule.timesteps >= last))
        if not count:
            raise DistrijaxError(f"denoising_end {denoising_end} leaves none of {total} steps; raise it")
        schedule = schedule[:count]
    return schedule


def _cutoff(scheduler: Scheduler, name: str, part: float | None) -> int | None:
    """Return the training timestep at which this fraction of the noise schedule has passed."""
    if part is None:
        return None
    if not scheduler.has_training_steps:
        raise DistrijaxError(
            f"denoising_{name} is a fraction of the training timesteps, of which {scheduler.class_name} has none"
        )
    fraction = finite_number(f"denoising_{name}", part)
    if not 0 < fraction < 1:
        raise DistrijaxError(f"denoising_{name} is {part!r}; it must be a number between 0 and 1, both excluded")
    total = scheduler.num_train_timesteps
    return round(total - fraction * total)

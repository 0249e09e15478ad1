"""What the denoising begins with: the schedule of a call, the first latents, the noise of its steps."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from distrijax.errors import DistrijaxError
from distrijax.noise import GENERATORS, randn
from distrijax.schedulers import Schedule, Scheduler


def schedule_of(
    scheduler: Scheduler,
    num_inference_steps: int,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    denoising_end: float | None,
    eta: float,
) -> Schedule:
    """The steps of a call; with `denoising_end` without those that are left to another model."""
    custom = timesteps is not None or sigmas is not None
    schedule = scheduler.schedule(None if custom else num_inference_steps, timesteps=timesteps, sigmas=sigmas, eta=eta)
    if denoising_end is not None:
        total = scheduler.num_train_timesteps
        kept = int(np.sum(schedule.timesteps >= round(total - denoising_end * total)))
        if not kept:
            raise DistrijaxError(f"denoising_end {denoising_end} leaves none of {len(schedule)} steps; raise it")
        schedule = schedule[:kept]
    return schedule


def initial_latents(
    kind: str,
    seed: int | Sequence[int],
    shape: tuple[int, ...],
    schedule: Schedule,
    latents: ArrayLike | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Latents to start from [B, h, w, C], and the noise of every step [S, B, h, w, C] if one draws any.

    Drawn for the whole picture, in the order of diffusers: first the latents, then step by step.

    Args:
        kind: a key of `GENERATORS`.
        shape: of the latents as diffusers has them, (B, C, h, w).
        latents: of that shape, in place of random ones.
    """
    batch = shape[0]
    seeds = [seed] if isinstance(seed, int | np.integer) else list(seed)
    if len(seeds) not in (1, batch) or (len(seeds) == 1 and not isinstance(seed, int | np.integer) and batch != 1):
        raise DistrijaxError(f"{len(seeds)} seeds for {batch} pictures; give one number, or a list of one for each")
    generators = [GENERATORS[kind](s) for s in seeds]
    if latents is None:
        start = randn(generators, shape)
    else:
        start = np.asarray(latents, np.float32)
        if start.shape != shape:
            raise DistrijaxError(f"latents have the shape {start.shape}; for this call it must be {shape}")
    noise = None
    if schedule.draws.any():
        nothing = np.zeros(shape, np.float32)
        drawn = np.stack([randn(generators, shape) if draws else nothing for draws in schedule.draws])
        noise = drawn.transpose(0, 1, 3, 4, 2)
    return start.transpose(0, 2, 3, 1) * np.float32(schedule.init_noise_sigma), noise

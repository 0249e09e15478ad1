"""The steps of one denoising run, computed on the host before it begins."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import jax
import numpy as np
from jax.typing import ArrayLike

from distrijax.checks import whole_number
from distrijax.errors import DistrijaxError

Array = jax.Array | np.ndarray
Coefficients = Mapping[str, ArrayLike]
"""The numbers of one step by name: one entry of each array in `Schedule.coefficients`."""
State = tuple[jax.Array, ...]
"""A scheduler's state between steps: arrays shaped like the latents."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of a run of S steps.

    Attributes:
        timesteps: the U-Net's time input at each step, float32 or int32 [S] as in diffusers.
        coefficients: name -> float32 [S]. `jax.lax.scan` over them gives `Scheduler.step` those of its step.
        signal: factor of the clean latents at the start of each step, float32 [S].
        noise_level: factor of the noise there: the latents are signal * clean + noise_level * noise, float32 [S].
        init_noise_sigma: factor of the initial noise of a run that begins with noise alone, at the first step of the
            whole run. As in diffusers, Euler's differs from its first `noise_level` with `leading` timesteps.
        draws: whether each step consumes a noise tensor, bool [S]. Noise is drawn in this order, after the initial
            latents.
    """

    timesteps: np.ndarray
    coefficients: dict[str, np.ndarray]
    signal: np.ndarray
    noise_level: np.ndarray
    init_noise_sigma: float
    draws: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)

    def __getitem__(self, part: slice) -> Self:
        """Return the leading steps: `schedule[:n]` stops early, with the coefficients of the whole run.

        Raises:
            DistrijaxError: the slice does not begin with the first step. A multistep solver that begins later has no
                history, so its coefficients differ; use the argument `start` of `Scheduler.schedule`.
        """
        if part.start not in (None, 0) or part.step not in (None, 1):
            raise DistrijaxError(f"schedule[{part}] does not begin with the first step; use schedule(..., start=n)")
        return dataclasses.replace(
            self,
            timesteps=self.timesteps[part],
            coefficients={name: values[part] for name, values in self.coefficients.items()},
            signal=self.signal[part],
            noise_level=self.noise_level[part],
            draws=self.draws[part],
        )

    def add_noise(self, clean: Array, noise: Array, step: int = 0) -> Array:
        """Return latents as they are at the start of a step, from clean latents and normal noise of the same shape.

        Args:
            clean: latents without noise, any shape.
            noise: normal noise.
            step: index into this schedule, so 0 is the step at which the run begins.

        Returns:
            The noisy latents in float32, a numpy array if both arguments are.
        """
        step = whole_number("step", step, most=len(self) - 1)
        clean, noise = clean.astype(np.float32), noise.astype(np.float32)
        return self.signal[step] * clean + self.noise_level[step] * noise

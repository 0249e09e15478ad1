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
    """The tables of a run, a row for each evaluation of the U-Net.

    Most schedulers evaluate it once a step, so that rows are steps; Heun's and its kind twice, but for the last step.

    Attributes:
        timesteps: the U-Net's time input in each row, float32 or int32 [S] as in diffusers.
        coefficients: name -> float32 [S]. `jax.lax.scan` over them gives `Scheduler.step` those of its row.
        signal: factor of the clean latents before each row, float32 [S].
        noise_level: factor of the noise there: the latents are signal * clean + noise_level * noise, float32 [S].
        init_noise_sigma: factor of the initial noise of a run that begins with noise alone, at the first row of the
            whole run. As in diffusers, Euler's differs from its first `noise_level` with `leading` timesteps.
        draws: whether each row consumes a noise tensor, bool [S]. Noise is drawn in this order, after the initial
            latents.
        step_of: index of the step that each row belongs to, from 0, int [S]. Progress and warm-up count steps.
    """

    timesteps: np.ndarray
    coefficients: dict[str, np.ndarray]
    signal: np.ndarray
    noise_level: np.ndarray
    init_noise_sigma: float
    draws: np.ndarray
    step_of: np.ndarray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.timesteps)

    @property
    def steps(self) -> int:
        """The number of steps, which is lower than that of rows if some steps evaluate the U-Net more than once."""
        return int(self.step_of[-1]) + 1

    @property
    def after(self) -> tuple[np.ndarray, np.ndarray]:
        """The factors of the clean latents and of the noise after each row, float32 [S] each.

        As in diffusers' inpainting, the run's last row ends at clean latents, also where the run is cut short.
        """
        return np.append(self.signal[1:], np.float32(1)), np.append(self.noise_level[1:], np.float32(0))

    def __getitem__(self, part: slice) -> Self:
        """Return the leading rows: `schedule[:n]` stops early, with the coefficients of the whole run.

        Raises:
            DistrijaxError: the slice does not begin with the first row. A multistep solver that begins later has no
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
            step_of=self.step_of[part],
        )

    def add_noise(self, clean: Array, noise: Array, step: int = 0) -> Array:
        """Return latents as they are before a row, from clean latents and normal noise of the same shape.

        Args:
            clean: latents without noise, any shape.
            noise: normal noise.
            step: index of a row of this schedule, so 0 is where the run begins.

        Returns:
            The noisy latents in float32, a numpy array if both arguments are.
        """
        step = whole_number("step", step, most=len(self) - 1)
        clean, noise = clean.astype(np.float32), noise.astype(np.float32)
        return self.signal[step] * clean + self.noise_level[step] * noise

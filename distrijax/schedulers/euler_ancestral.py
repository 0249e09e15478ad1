"""Euler's method with ancestral noise: each step goes further down than asked, and fresh noise brings it back up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.schedulers import tables
from distrijax.schedulers.common import Array, Row, Schedule, Scheduler, State, combine
from distrijax.schedulers.euler import euler_coefficients, init_noise_sigma, input_norm


@dataclass(frozen=True, kw_only=True)
class EulerAncestralDiscreteScheduler(Scheduler):
    """diffusers' `EulerAncestralDiscreteScheduler`. Draws noise at every step, the last one included."""

    class_name = "EulerAncestralDiscreteScheduler"
    choices: ClassVar = {"prediction_type": ("epsilon", "v_prediction")}

    def schedule(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float = 0.0,
    ) -> Schedule:
        steps, _, _ = self._choose(num_inference_steps, timesteps, sigmas)
        train, table = self.num_train_timesteps, self.train_sigmas
        visited = tables.spaced_timesteps(self.timestep_spacing, steps, train, self.steps_offset).astype(np.float32)
        noise = np.append(np.interp(visited, np.arange(train), table), 0.0).astype(np.float32)  # [S + 1]

        now, after = noise[:-1].astype(np.float64), noise[1:].astype(np.float64)
        down = after**2 / now  # what is left of `after` in quadrature, sqrt(after^2 - up^2), without the cancellation
        up = np.sqrt(after**2 * (now**2 - after**2) / now**2)
        of_sample, of_prediction = euler_coefficients(self.prediction_type, now, down)
        rows = {
            "input_norm": input_norm(noise[:-1]),
            "sample": of_sample,
            "prediction": of_prediction,
            "fresh_noise": up,
        }
        return self._finished(visited, rows, init_noise_sigma(self.timestep_spacing, noise), True)

    def scale_model_input(self, row: Row, sample: Array) -> Array:
        return sample / row["input_norm"]

    def step(
        self, row: Row, state: State, prediction: Array, sample: Array, noise: Array | None
    ) -> tuple[Array, State]:
        terms = (row["sample"], sample), (row["prediction"], prediction), (row["fresh_noise"], noise)
        return combine(*terms), state

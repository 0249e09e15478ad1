"""Euler's method with ancestral noise: each step goes below the next noise level, and fresh noise brings it back up."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.config import entry
from distrijax.schedulers import tables
from distrijax.schedulers.base import Request, Scheduler
from distrijax.schedulers.euler import euler_coefficients, init_noise_sigma, input_norm
from distrijax.schedulers.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class EulerAncestralDiscreteScheduler(Scheduler):
    """Ancestral Euler, step for step as in diffusers; it draws noise at every step, including the last."""

    class_name = "EulerAncestralDiscreteScheduler"
    rules: ClassVar = {"prediction_type": entry.choice("epsilon", "v_prediction")}

    def _build(self, request: Request) -> Schedule:
        train, table = self.num_train_timesteps, self.train_sigmas
        times = tables.spaced_timesteps(self.timestep_spacing, request.steps, train, self.steps_offset)
        times = times.astype(np.float32)
        noise = np.append(np.interp(times, np.arange(train), table), 0.0).astype(np.float32)  # [S + 1]

        now, after = noise[:-1].astype(np.float64), noise[1:].astype(np.float64)
        down = after**2 / now  # sqrt(after^2 - up^2), without the cancellation
        up = np.sqrt(after**2 * (now**2 - after**2) / now**2)
        of_sample, of_prediction = euler_coefficients(self.prediction_type, now, down)
        coefficients = {
            "input_norm": input_norm(noise[:-1]),
            "sample": of_sample,
            "prediction": of_prediction,
            "fresh_noise": up,
        }
        sigma = init_noise_sigma(self.timestep_spacing, noise)
        return Schedule(times, coefficients, np.ones_like(now), now, sigma, np.full(len(now), True))

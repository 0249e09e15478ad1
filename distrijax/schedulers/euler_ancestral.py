"""Euler's method with ancestral noise: each step goes below the next noise level, and fresh noise brings it back up."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.config import entry
from distrijax.schedulers.base import Request
from distrijax.schedulers.euler import euler_coefficients
from distrijax.schedulers.predictions import terms
from distrijax.schedulers.schedule import Schedule
from distrijax.schedulers.sigma import SigmaScheduler, init_noise_sigma, input_norm


@dataclass(frozen=True, kw_only=True)
class EulerAncestralDiscreteScheduler(SigmaScheduler):
    """Ancestral Euler, step for step as in diffusers; it draws noise at every step, including the last."""

    rescale_betas_zero_snr: bool = False

    class_name = "EulerAncestralDiscreteScheduler"
    rules: ClassVar = {"prediction_type": entry.choice("epsilon", "v_prediction")}

    def _build(self, request: Request) -> Schedule:
        times, noise = self._placed(request.steps)
        now, after = noise[:-1].astype(np.float64), noise[1:].astype(np.float64)
        down, up = ancestral(now, after)
        of_sample, of_prediction = euler_coefficients(self.prediction_type, now, down)
        coefficients = {"input_norm": input_norm(noise[:-1])}
        coefficients |= terms("next", sample=of_sample, prediction=of_prediction, noise=up)
        sigma, steps = init_noise_sigma(self.timestep_spacing, noise), np.arange(len(now))
        return Schedule(times, coefficients, np.ones_like(now), now, sigma, np.full(len(now), True), steps)


def ancestral(now: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the noise level to go down to without noise, and the noise that brings it up to `after`, float64 [S]."""
    down = after**2 / now  # sqrt(after^2 - up^2), without the cancellation
    return down, np.sqrt(after**2 * (now**2 - after**2) / now**2)

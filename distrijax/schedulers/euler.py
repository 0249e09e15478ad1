"""Euler's method in the noise-to-signal ratio sigma (Karras et al., arXiv 2206.00364, algorithm 2 without churn)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.schedulers import tables
from distrijax.schedulers.base import Request
from distrijax.schedulers.predictions import terms
from distrijax.schedulers.schedule import Schedule
from distrijax.schedulers.sigma import SigmaScheduler, init_noise_sigma, input_norm


def euler_coefficients(prediction_type: str, now: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors of the sample and of the prediction in one Euler step between noise levels, float64 [S].

    The sample is x0 + sigma noise. The step is x + (x - x0) / sigma * (after - now), with x0 from the prediction;
    expanded, nothing cancels at the sigma of 4096 that zero terminal SNR starts from.
    """
    now, after = np.asarray(now, np.float64), np.asarray(after, np.float64)
    if prediction_type == "epsilon":
        return np.ones_like(now), after - now
    if prediction_type == "v_prediction":
        return (1 + now * after) / (now**2 + 1), (after - now) / np.sqrt(now**2 + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return after / now, 1 - after / now


@dataclass(frozen=True, kw_only=True)
class EulerDiscreteScheduler(SigmaScheduler):
    """Euler's method, SDXL's default, step for step as in diffusers; its timesteps are float32."""

    rescale_betas_zero_snr: bool = False
    interpolation_type: str = "linear"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_type: str = "discrete"
    final_sigmas_type: str = "zero"

    class_name = "EulerDiscreteScheduler"
    custom: ClassVar = ("timesteps", "sigmas")
    whole_timesteps = False

    def _build(self, request: Request) -> Schedule:
        steps = request.steps
        continuous = self.timestep_type == "continuous" and self.prediction_type == "v_prediction"
        if request.timesteps is not None and continuous:
            raise self._error("custom timesteps cannot be used with timestep_type 'continuous' and v_prediction")
        train_sigmas = self.train_sigmas
        if request.sigmas is not None:
            noise = request.sigmas.astype(np.float32)  # [S + 1]
            times = tables.timestep_of(noise[:-1], np.log(train_sigmas))
        else:
            times, noise = self._placed(steps, request.timesteps)
        timesteps = 0.25 * tables.log32(noise[:-1]) if continuous else times

        now, after = noise[:steps], noise[1 : steps + 1]
        of_sample, of_prediction = euler_coefficients(self.prediction_type, now, after)
        coefficients = {"input_norm": input_norm(now)} | terms("next", sample=of_sample, prediction=of_prediction)
        sigma = init_noise_sigma(self.timestep_spacing, noise)
        draws, step_of = np.full(steps, False), np.arange(steps)
        return Schedule(timesteps.astype(np.float32), coefficients, np.ones_like(now), now, sigma, draws, step_of)

    def _sigmas_at(self, times: np.ndarray) -> np.ndarray:
        if self.interpolation_type == "linear":
            return super()._sigmas_at(times)
        # one level more than steps: diffusers ends at the lowest of them, not at its final sigma
        table = self.train_sigmas
        return tables.exp32(tables.linspace32(np.log(table[-1]), np.log(table[0]), len(times) + 1))

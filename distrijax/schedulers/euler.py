"""Euler's method in the noise-to-signal ratio sigma (Karras et al., arXiv 2206.00364, algorithm 2 without churn)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.schedulers import tables
from distrijax.schedulers.base import Request, Scheduler
from distrijax.schedulers.schedule import Schedule


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
class EulerDiscreteScheduler(Scheduler):
    """Euler's method, SDXL's default, step for step as in diffusers; its timesteps are float32."""

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
        coefficients = {"input_norm": input_norm(now), "sample": of_sample, "prediction": of_prediction}
        sigma = init_noise_sigma(self.timestep_spacing, noise)
        draws = np.full(steps, False)
        return Schedule(timesteps.astype(np.float32), coefficients, np.ones_like(now), now, sigma, draws)

    def _placed(self, steps: int, chosen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the timesteps, float [S], and the noise levels, float32 [S + 1] or one more."""
        table = self.train_sigmas
        if chosen is None:
            chosen = tables.spaced_timesteps(self.timestep_spacing, steps, self.num_train_timesteps, self.steps_offset)
        times = chosen.astype(np.float32)
        if self.interpolation_type == "linear":
            noise = np.interp(times, np.arange(len(table)), table)
        else:  # one level more than steps: diffusers ends at the lowest of them, not at its final sigma
            noise = tables.exp32(tables.linspace32(np.log(table[-1]), np.log(table[0]), steps + 1))
        low = float(noise[-1]) if self.sigma_min is None else self.sigma_min
        high = float(noise[0]) if self.sigma_max is None else self.sigma_max
        if self._uses_formula:
            noise = self._formula_sigmas(low, high, steps)
            times = tables.timestep_of(noise, np.log(table))
        final = table[0] if self.final_sigmas_type == "sigma_min" else 0.0
        return times, np.concatenate([noise, [final]]).astype(np.float32)


def input_norm(sigma: np.ndarray) -> np.ndarray:
    """Return the standard deviation of x0 + sigma noise for x0 of unit variance, float32 [S]."""
    return np.sqrt(sigma**2 + np.float32(1))


def init_noise_sigma(timestep_spacing: str, sigmas: np.ndarray) -> float:
    """Return the standard deviation of the initial latents; `leading` skips the highest training noise level."""
    highest = sigmas.max()
    return float(highest if timestep_spacing in ("linspace", "trailing") else input_norm(highest))

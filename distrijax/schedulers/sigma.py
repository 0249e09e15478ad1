"""The base of the schedulers whose latents are x0 + sigma noise, with noise levels as in Karras et al. (2206.00364)."""

from dataclasses import dataclass

import numpy as np

from distrijax.schedulers import tables
from distrijax.schedulers.trained import SpacedScheduler


@dataclass(frozen=True, kw_only=True)
class SigmaScheduler(SpacedScheduler):
    """Places noise levels sigma at the spaced timesteps, or timesteps at the levels of a formula, as diffusers does."""

    def _placed(self, steps: int, chosen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the timesteps, float [S], and the noise levels, float32 [S + 1] or one more.

        Args:
            chosen: custom timesteps.
        """
        table = self.train_sigmas
        if chosen is None:
            chosen = tables.spaced_timesteps(self.timestep_spacing, steps, self.num_train_timesteps, self.steps_offset)
        times = chosen.astype(np.float32)
        noise = self._sigmas_at(times)
        low, high = getattr(self, "sigma_min", None), getattr(self, "sigma_max", None)
        if self._uses_formula:
            low, high = (float(noise[-1]) if low is None else low), (float(noise[0]) if high is None else high)
            noise = self._formula_sigmas(low, high, steps)
            times = tables.timestep_of(noise, np.log(table))
        final = table[0] if getattr(self, "final_sigmas_type", "zero") == "sigma_min" else 0.0
        return times, np.concatenate([noise, [final]]).astype(np.float32)

    def _sigmas_at(self, times: np.ndarray) -> np.ndarray:
        """Return the noise levels at fractional timesteps, float [S]."""
        return np.interp(times, np.arange(self.num_train_timesteps), self.train_sigmas)


def derivative_factors(prediction_type: str, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors of the sample and of the prediction whose sum is (x - x0) / sigma, float64 [S] each."""
    sigma = np.asarray(sigma, np.float64)
    if prediction_type == "epsilon":
        return np.zeros_like(sigma), np.ones_like(sigma)
    if prediction_type == "v_prediction":
        return sigma / (sigma**2 + 1), 1 / np.sqrt(sigma**2 + 1)
    return 1 / sigma, -1 / sigma


def input_norm(sigma: np.ndarray, sigma_data: float = 1.0) -> np.ndarray:
    """Return the standard deviation of x0 + sigma noise for x0 with that of the data, float32 [S]."""
    return np.sqrt(sigma**2 + np.float32(sigma_data) ** 2)


def init_noise_sigma(timestep_spacing: str, sigmas: np.ndarray) -> float:
    """Return the standard deviation of the initial latents; `leading` skips the highest training noise level."""
    highest = sigmas.max()
    return float(highest if timestep_spacing in ("linspace", "trailing") else input_norm(highest))

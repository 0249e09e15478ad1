"""DDPM: ancestral sampling with the variance of the forward process (Ho et al., arXiv 2006.11239)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.config import entry
from distrijax.schedulers.base import Request
from distrijax.schedulers.predictions import terms, to_clean
from distrijax.schedulers.schedule import Schedule
from distrijax.schedulers.tables import BETA_SCHEDULES
from distrijax.schedulers.trained import SpacedScheduler


@dataclass(frozen=True, kw_only=True)
class DDPMScheduler(SpacedScheduler):
    """DDPM, step for step as in diffusers; it draws noise at every step but one at timestep 0.

    Of the variances, `fixed_large_log` is missing: diffusers takes the square root of a logarithm, which is NaN.
    """

    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False
    variance_type: str = "fixed_small"
    clip_sample: bool = True
    clip_sample_range: float = 1.0

    class_name = "DDPMScheduler"
    off: ClassVar = ("thresholding",)
    custom: ClassVar = ("timesteps",)
    rules: ClassVar = {
        "beta_schedule": entry.choice(*BETA_SCHEDULES, "sigmoid", "laplace"),
        "variance_type": entry.choice("fixed_small", "fixed_small_log", "fixed_large"),
    }

    def _build(self, request: Request) -> Schedule:
        custom = request.timesteps
        now = self._training_steps(request.steps) if custom is None else custom.astype(np.int64)
        power = self.alphas_cumprod[now]
        power_after = np.append(power[1:], np.float32(1))
        # float32 as in diffusers: these differences cancel, so its results depend on their rounding
        one = np.float32(1)
        rest, rest_after = one - power, one - power_after
        kept = power / power_after
        beta = one - kept
        variance = np.maximum(rest_after / rest * beta, np.float32(1e-20))
        spread = np.sqrt(beta if self.variance_type == "fixed_large" else variance)

        alpha, sigma = np.sqrt(power), np.sqrt(rest)
        of_sample, of_prediction = to_clean(self.prediction_type, alpha, sigma)
        coefficients = terms("estimate_0", sample=of_sample, prediction=of_prediction) | terms(
            "next",
            sample=np.sqrt(kept) * rest_after / rest,
            estimates=(np.sqrt(power_after) * beta / rest)[:, None],
            noise=np.where(now > 0, spread, 0),
        )
        return Schedule(now.astype(np.int32), coefficients, alpha, sigma, 1.0, now > 0, np.arange(len(now)))

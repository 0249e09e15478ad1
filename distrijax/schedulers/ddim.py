"""DDIM (Song et al., arXiv 2010.02502)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.schedulers.base import Request
from distrijax.schedulers.predictions import terms, to_clean, to_noise
from distrijax.schedulers.schedule import Schedule
from distrijax.schedulers.trained import SpacedScheduler


@dataclass(frozen=True, kw_only=True)
class DDIMScheduler(SpacedScheduler):
    """DDIM, step for step as in diffusers; `eta` above 0 adds noise at every step, including the last."""

    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True

    class_name = "DDIMScheduler"
    off: ClassVar = ("thresholding",)
    largest_eta = math.inf

    def _build(self, request: Request) -> Schedule:
        now = self._training_steps(request.steps)
        after = now - self.num_train_timesteps // request.steps
        alphas = self.alphas_cumprod
        final = np.float32(1) if self.set_alpha_to_one else alphas[0]
        power = alphas[now]
        power_after = np.where(after >= 0, alphas[np.maximum(after, 0)], final)

        # float32 as in diffusers: these differences cancel, so its results depend on their rounding
        one, eta = np.float32(1), np.float32(request.eta)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = ((one - power_after) / (one - power)) * (one - power / power_after)
            spread = eta * np.sqrt(variance)
            rest = one - power_after - spread**2
            # zero at eta 1 from zero SNR; diffusers returns NaN where it rounds to less
            toward_noise = np.sqrt(np.maximum(rest, 0) if eta <= 1 else rest)

        alpha, sigma = np.sqrt(power), np.sqrt(one - power)
        of_sample, of_prediction = to_clean(self.prediction_type, alpha, sigma)
        toward_sample, toward_prediction = to_noise(self.prediction_type, alpha, sigma)
        coefficients = terms("estimate_0", sample=of_sample, prediction=of_prediction) | terms(
            "next",
            estimates=np.sqrt(power_after)[:, None],
            sample=toward_noise * toward_sample,
            prediction=toward_noise * toward_prediction,
            noise=spread,
        )
        steps = np.arange(len(now))
        return Schedule(now.astype(np.int32), coefficients, alpha, sigma, 1.0, np.full(len(now), eta > 0), steps)

"""Latent consistency models (Luo et al., arXiv 2310.04378): few steps, each to the clean image and back to noise."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.checks import whole_number
from distrijax.schedulers.base import Request
from distrijax.schedulers.predictions import terms, to_clean
from distrijax.schedulers.schedule import Schedule
from distrijax.schedulers.trained import SpacedScheduler

_SIGMA_DATA = 0.5  # standard deviation of the data in the boundary condition; diffusers has no option for it


@dataclass(frozen=True, kw_only=True)
class DistilledScheduler(SpacedScheduler):
    """The base of LCM and TCD, whose timesteps are taken from the schedule that the model was distilled on."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False
    original_inference_steps: int = 50

    custom: ClassVar = ("timesteps",)

    def _distilled_timesteps(self, request: Request) -> np.ndarray:
        """Return custom timesteps, or evenly spaced ones of the distillation schedule, int64 [S], descending."""
        if request.timesteps is not None:
            return request.timesteps.astype(np.int64)
        steps, original, train = request.steps, self.original_inference_steps, self.num_train_timesteps
        whole_number(f"{self.class_name}: original_inference_steps", original, 1, train)
        if steps > original:
            raise self._error(
                f"num_inference_steps {steps} is more than original_inference_steps {original}, the schedule that the "
                "model was distilled on; use fewer steps"
            )
        falling = (np.arange(1, original + 1) * (train // original) - 1)[::-1]
        return falling[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)]


@dataclass(frozen=True, kw_only=True)
class LCMScheduler(DistilledScheduler):
    """LCM, step for step as in diffusers; it draws noise at every step but the last."""

    clip_sample: bool = False
    clip_sample_range: float = 1.0
    timestep_scaling: float = 10.0

    class_name = "LCMScheduler"
    off: ClassVar = ("thresholding",)

    def _build(self, request: Request) -> Schedule:
        now = self._distilled_timesteps(request)
        power = self.alphas_cumprod[now]
        power_after = np.append(power[1:], np.float32(1))  # the last step returns the clean image
        scaled = now * self.timestep_scaling
        norm = scaled**2 + _SIGMA_DATA**2
        alpha, sigma = np.sqrt(power), np.sqrt(1 - power)
        of_sample, of_prediction = to_clean(self.prediction_type, alpha, sigma)
        next_signal = np.sqrt(power_after)
        coefficients = terms("estimate_0", sample=of_sample, prediction=of_prediction) | terms(
            "next",
            sample=next_signal * (_SIGMA_DATA**2 / norm),
            estimates=(next_signal * (scaled / np.sqrt(norm)))[:, None],
            noise=np.sqrt(1 - power_after),
        )
        steps = np.arange(len(now))
        draws = steps < len(now) - 1
        return Schedule(now.astype(np.int32), coefficients, alpha, sigma, 1.0, draws, steps)

"""Trajectory consistency distillation (Zheng et al., arXiv 2402.19159): eta (gamma there) sets the noise of a step."""

from dataclasses import dataclass

import numpy as np

from distrijax.schedulers.base import Request
from distrijax.schedulers.lcm import DistilledScheduler
from distrijax.schedulers.predictions import terms, to_clean, to_noise
from distrijax.schedulers.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class TCDScheduler(DistilledScheduler):
    """TCD, step for step as in diffusers; with `eta` above 0, it draws noise at every step but the last.

    diffusers' class has clip_sample, set_alpha_to_one and timestep_scaling too, but its step does not use them.
    """

    class_name = "TCDScheduler"
    largest_eta = 1.0

    def _build(self, request: Request) -> Schedule:
        now = self._distilled_timesteps(request)
        after = np.append(now[1:], 0)
        # float32 as in diffusers: its rounding decides which timestep the floor returns
        down = np.floor(np.float32(1 - request.eta) * after.astype(np.float32)).astype(np.int64)

        table = self.alphas_cumprod.astype(np.float64)
        power, power_down, kept = table[now], table[down], table[after] / table[down]
        alpha, sigma = np.sqrt(power), np.sqrt(1 - power)
        clean, direction = to_clean(self.prediction_type, alpha, sigma), to_noise(self.prediction_type, alpha, sigma)
        # to the lower noise level `down` without noise, then up to `after` with it
        of_sample, of_prediction = (
            np.sqrt(kept) * (np.sqrt(power_down) * c + np.sqrt(1 - power_down) * d)
            for c, d in zip(clean, direction, strict=True)
        )
        coefficients = terms("next", sample=of_sample, prediction=of_prediction, noise=np.sqrt(1 - kept))
        steps = np.arange(len(now))
        draws = (steps < len(now) - 1) & (request.eta > 0)
        return Schedule(now.astype(np.int32), coefficients, alpha, sigma, 1.0, draws, steps)

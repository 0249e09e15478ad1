"""Samplers of models in the design space of Karras et al. (arXiv 2206.00364), such as Playground v2.5 and CosXL.

These models have no training timesteps: the U-Net sees the logarithm of the noise level, and the clean image is a
weighted sum of the sample and its prediction.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.config import entry
from distrijax.schedulers import tables
from distrijax.schedulers.base import Request, Scheduler
from distrijax.schedulers.dpmsolver import MultistepDPMSolver
from distrijax.schedulers.exponential import Levels
from distrijax.schedulers.predictions import terms
from distrijax.schedulers.schedule import Schedule
from distrijax.schedulers.sigma import input_norm

_POSITIVE = entry.number(1e-8, 1e8)


@dataclass(frozen=True, kw_only=True)
class EDMScheduler(Scheduler):
    """The options that describe the noise levels and the U-Net."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    sigma_schedule: str = "karras"
    rho: float = 7.0
    final_sigmas_type: str = "zero"

    has_training_steps = False
    edm_rules: ClassVar = {
        "prediction_type": entry.choice("epsilon", "v_prediction"),
        "sigma_schedule": entry.choice("karras", "exponential"),
        **dict.fromkeys(("sigma_min", "sigma_max", "sigma_data", "rho"), _POSITIVE),
    }

    def _sigmas(self, steps: int, *, single: bool = False) -> np.ndarray:
        """Return the noise levels of a run, float32 [steps], descending; for `single` see `tables.karras_sigmas`."""
        if self.sigma_schedule == "exponential":
            low, high = np.log(self.sigma_min), np.log(self.sigma_max)
            return tables.exp32(tables.linspace32(low, high, steps))[::-1]
        levels = tables.karras_sigmas(self.sigma_min, self.sigma_max, steps, self.rho, single=single)
        return levels.astype(np.float32)

    def _run(self, sigmas: np.ndarray, coefficients: dict[str, np.ndarray], *, draws: bool = False) -> Schedule:
        """Return the schedule of a run, from its noise levels [S] and the solver's coefficients."""
        times = np.float32(0.25) * tables.log32(sigmas)
        first, count = float(np.sqrt(self.sigma_max**2 + 1)), len(sigmas)
        norm = {"input_norm": input_norm(sigmas, self.sigma_data)}
        flags, steps = np.full(count, draws), np.arange(count)
        return Schedule(times, norm | coefficients, np.ones_like(sigmas), sigmas, first, flags, steps)

    def denoised_factors(self, schedule: Schedule) -> dict[str, np.ndarray]:
        of_sample, of_prediction = self._clean_factors(schedule.noise_level)
        factors = {"denoised_sample": of_sample, "denoised_prediction": of_prediction}
        return {name: x.astype(np.float32) for name, x in factors.items()}

    def _clean_factors(self, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the factors of the sample and of the prediction whose sum is the clean image, float64 [S] each."""
        sigma, data = sigmas.astype(np.float64), self.sigma_data
        power = sigma**2 + data**2
        sign = -1 if self.prediction_type == "v_prediction" else 1
        return data**2 / power, sign * sigma * data / np.sqrt(power)


@dataclass(frozen=True, kw_only=True)
class EDMEulerScheduler(EDMScheduler):
    """Euler's method for such models, step for step as in diffusers, without churn."""

    class_name = "EDMEulerScheduler"
    rules: ClassVar = EDMScheduler.edm_rules

    def _build(self, request: Request) -> Schedule:
        now = self._sigmas(request.steps)
        after = np.append(now[1:], now[-1] if self.final_sigmas_type == "sigma_min" else np.float32(0))
        of_sample, of_prediction = self._clean_factors(now)
        stays = after.astype(np.float64) / now
        return self._run(
            now, terms("next", sample=stays + (1 - stays) * of_sample, prediction=(1 - stays) * of_prediction)
        )


@dataclass(frozen=True, kw_only=True)
class EDMDPMSolverMultistepScheduler(MultistepDPMSolver, EDMScheduler):
    """Multistep DPM-Solver++ for such models, step for step as in diffusers; its SDE form has orders 1 and 2."""

    class_name = "EDMDPMSolverMultistepScheduler"
    rules: ClassVar = MultistepDPMSolver.rules | EDMScheduler.edm_rules
    off: ClassVar = ("thresholding",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._stochastic and self.solver_order == 3:
            raise self._error("sde-dpmsolver++ has no solver_order 3 here, as in diffusers; use 2")

    def _build(self, request: Request) -> Schedule:
        now = self._sigmas(request.steps, single=True)
        last = np.float32(self.sigma_min if self.final_sigmas_type == "sigma_min" else 0)
        levels = Levels.exploding(np.append(now, last))
        of_sample, of_prediction = self._clean_factors(now)
        coefficients = terms("estimate_0", sample=of_sample, prediction=of_prediction)
        return self._run(now, coefficients | self._steps(levels, request.start), draws=self._stochastic)

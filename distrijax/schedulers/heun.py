"""Heun's method: a step of Euler, then one with the mean of the derivatives at its ends (arXiv 2206.00364)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.config import entry
from distrijax.schedulers.tables import BETA_SCHEDULES
from distrijax.schedulers.two_evaluations import Pair, TwoEvaluationScheduler


@dataclass(frozen=True, kw_only=True)
class HeunDiscreteScheduler(TwoEvaluationScheduler):
    """Heun's method, step for step as in diffusers."""

    clip_sample: bool = False
    clip_sample_range: float = 1.0

    class_name = "HeunDiscreteScheduler"
    custom: ClassVar = ("timesteps",)
    whole_timesteps = False
    rules: ClassVar = {
        "prediction_type": entry.choice("epsilon", "v_prediction", "sample"),
        "beta_schedule": entry.choice(*BETA_SCHEDULES, "exp"),
    }

    def _pair(self, now: np.ndarray, after: np.ndarray) -> Pair:
        half = (after - now) / 2
        return Pair(
            sigma=after,
            there={"sample": np.ones_like(now), "derivative": after - now},
            held={"sample": np.ones_like(now), "derivative": half},
            rest={"derivative": half},
        )

    def _second_timesteps(self, times: np.ndarray, pair: Pair) -> np.ndarray:
        return times[1:]

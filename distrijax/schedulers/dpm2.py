"""DPM-Solver-2 in the noise level, plain and ancestral: midpoint methods (arXiv 2206.00364, appendix C)."""

from dataclasses import dataclass

import numpy as np

from distrijax.schedulers.euler_ancestral import ancestral
from distrijax.schedulers.two_evaluations import Pair, TwoEvaluationScheduler


@dataclass(frozen=True, kw_only=True)
class KDPM2DiscreteScheduler(TwoEvaluationScheduler):
    """DPM2, step for step as in diffusers: the derivative is that at the geometric mean of the noise levels."""

    class_name = "KDPM2DiscreteScheduler"
    rounds_karras_timesteps = True

    def _pair(self, now: np.ndarray, after: np.ndarray) -> Pair:
        return midpoint(now, np.sqrt(now * after), after)


@dataclass(frozen=True, kw_only=True)
class KDPM2AncestralDiscreteScheduler(TwoEvaluationScheduler):
    """Ancestral DPM2, step for step as in diffusers; the second evaluation of a step draws noise."""

    class_name = "KDPM2AncestralDiscreteScheduler"
    rounds_karras_timesteps = True

    def _pair(self, now: np.ndarray, after: np.ndarray) -> Pair:
        down, up = ancestral(now, after)
        pair = midpoint(now, after, down)  # down is after^2 / now, so the mean of now and down is `after`
        return Pair(pair.sigma, pair.there, pair.held, pair.rest | {"noise": up})


def midpoint(now: np.ndarray, middle: np.ndarray, end: np.ndarray) -> Pair:
    """Return a step from `now` to `end` with the derivative at `middle`."""
    one = np.ones_like(now)
    return Pair(
        sigma=middle,
        there={"sample": one, "derivative": middle - now},
        held={"sample": one},
        rest={"derivative": end - now},
    )

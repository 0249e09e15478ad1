"""DPM-Solver++ as an SDE with two evaluations a step, which A1111 calls DPM++ SDE (Lu et al., arXiv 2211.01095)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.schedulers.euler_ancestral import ancestral
from distrijax.schedulers.two_evaluations import Pair, TwoEvaluationScheduler


@dataclass(frozen=True, kw_only=True)
class DPMSolverSDEScheduler(TwoEvaluationScheduler):
    """DPM++ SDE, step for step as in diffusers, given the same noise. Every evaluation but the last draws noise.

    The noise of a step is that of a Brownian path over the noise level: of its whole way, it contains that of its first
    half. diffusers takes the path from torchsde, seeded apart; here it is made of the call's own random numbers, so
    pictures are as good, but not the same.
    """

    class_name = "DPMSolverSDEScheduler"
    off: ClassVar = ("noise_sampler_seed",)

    def _pair(self, now: np.ndarray, after: np.ndarray) -> Pair:
        middle = np.sqrt(now * after)
        down, up = ancestral_clipped(now, middle)
        end_down, end_up = ancestral_clipped(now, after)
        first = np.sqrt((now - middle) / (now - after))  # share of the path's first half in the noise of the whole
        second = np.sqrt((middle - after) / (now - after))
        stays = end_down / now  # of the latents; the rest comes from the clean image, x - sigma * derivative
        return Pair(
            sigma=middle,
            there={"sample": np.ones_like(now), "derivative": down - now, "noise": up},
            held={"sample": stays, "noise": end_up * first},
            rest={"sample": 1 - stays, "derivative": -(1 - stays) * middle, "noise": end_up * second},
        )


def ancestral_clipped(now: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `ancestral`, whose noise is never above the level to reach."""
    down, up = ancestral(now, after)
    return down, np.minimum(after, up)

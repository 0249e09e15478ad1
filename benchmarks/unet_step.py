"""One step of the U-Net in any implementation: what it gets, and what it must offer."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from distrijax.tools.bench.steps import random_inputs
from distrijax.tools.bench.timing import TimedFunction
from distrijax.tools.workload import Workload

TIMESTEP = 501.0
Weights = Mapping[str, jax.Array]  # ours, by path


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """Random inputs of a step, float32, the same for all. N is guidance branches times pictures.

    Attributes:
        latents: [N, h, w, C].
        context, pooled, ids: [N, 77, D], [N, P], [N, 6] or [N, 5].
        guidance: [N, E], for LCM only.
    """

    latents: np.ndarray
    context: np.ndarray
    pooled: np.ndarray
    ids: np.ndarray
    guidance: np.ndarray | None

    @classmethod
    def of(cls, workload: Workload) -> "StepInputs":
        text, latents = random_inputs(workload)
        # A U-Net for inpainting takes more channels than latents have.
        shape = (workload.branches * workload.pictures, *latents.shape[1:3], workload.model.unet.in_channels)
        latents = np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
        return cls(latents, *jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), text))


@dataclasses.dataclass(frozen=True)
class PeerSteps:
    """Steps to time, by name, and a function that returns the prediction of one of them, [N, h, w, C] float64."""

    functions: Mapping[str, TimedFunction]
    predict: Callable[[], np.ndarray]

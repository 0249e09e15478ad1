"""One step of the U-Net in another implementation: what it is given, and what is wanted of it."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from distrijax.bench.step import Case, text
from distrijax.bench.timing import Work

TIMESTEP = 501.0


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Of a step, float32; guidance branches and pictures share the first axis, N.

    Attributes:
        latents: [N, h, w, C].
        context, pooled, ids: [N, 77, D], [N, P], [N, 6] or [N, 5].
        guidance: [N, E], None but for LCM.
    """

    latents: np.ndarray
    context: np.ndarray
    pooled: np.ndarray
    ids: np.ndarray
    guidance: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Peer:
    """Ready to be timed.

    Attributes:
        works: name -> a step.
        seconds: name -> what its compilation took, where it is compiled.
        predict: a step's [N, h, w, C], float64.
    """

    works: Mapping[str, Work]
    seconds: Mapping[str, float]
    predict: Callable[[], np.ndarray]


def inputs(case: Case) -> Inputs:
    """Random, the same for all."""
    shape = (case.branches * case.pictures, *case.latents, case.model.unet.in_channels)
    latents = np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
    context, pooled, ids, guidance = (None if x is None else x.reshape(-1, *x.shape[2:]) for x in text(case))
    assert context is not None
    assert pooled is not None
    assert ids is not None
    return Inputs(latents, context, pooled, ids, guidance)

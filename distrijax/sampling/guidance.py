"""Classifier-free guidance (arXiv 2207.12598)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from distrijax.nn.exchange import Exchange
from distrijax.parallel.policies import GUIDED, PROMPTED


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guidance:
    """The weights that combine the branches' predictions: arrays, so that a change needs no recompilation.

    The branches are without and with the prompt, weighted [1 - scale, scale], or only with it, weighted [1].

    Attributes:
        weights: weight of each branch in the sum, fp32 [branches].
        prompted: 1 for the branch with the prompt, 0 for the other, fp32 [branches].
        rescale: from 0 to 1 (arXiv 2305.08891, section 3.4), fp32 scalar; None is 0 and costs nothing.
    """

    weights: Array
    prompted: Array
    rescale: Array | None = None

    @classmethod
    def of(cls, scale: float | None, rescale: float = 0.0) -> "Guidance":
        """Return the guidance for a scale and a rescale, or for a single branch if `scale` is None."""
        weights, prompted = ([1.0], [1.0]) if scale is None else ([1 - scale, scale], [0.0, 1.0])
        rescales = scale is not None and rescale > 0
        arrays: list[Any] = [np.asarray(x, np.float32) for x in (weights, prompted, rescale)]  # until they are placed
        return cls(arrays[0], arrays[1], arrays[2] if rescales else None)


def guide(predictions: Array, guidance: Guidance, exchange: Exchange) -> Array:
    """Return one prediction [B, h, W, C] from those of the branches [branches, B, h, W, C], some on other devices."""

    def weigh(weights: Array, x: Array) -> Array:
        # Add one by one: under three nested `vmap`s, XLA miscomputes a sum over the axis (see `spread`).
        return lax.psum(sum(weight * part for weight, part in zip(weights, x, strict=True)), "cfg")

    guided = weigh(guidance.weights, predictions)
    if guidance.rescale is None:
        return guided
    # Scale back to the deviation of the prediction with the prompt alone, over the whole picture.
    _, variances = exchange.moments(PROMPTED, predictions.reshape(-1, *predictions.shape[2:]), 1)
    target = weigh(guidance.prompted, variances.reshape(predictions.shape[:2]))  # [B]
    _, actual = exchange.moments(GUIDED, guided, 1)  # [B, 1]
    ratio = jnp.sqrt(target / actual[:, 0])[:, None, None, None]
    return guided * (guidance.rescale * ratio + (1 - guidance.rescale))

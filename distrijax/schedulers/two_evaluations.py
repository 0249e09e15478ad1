"""The base of the solvers that evaluate the U-Net twice a step: at the step's beginning, and further on.

A step has two rows in the schedule. The first moves the latents to where the second evaluation is wanted, and holds
what is settled of the step's result; the second adds the rest. The last step, to clean latents, is one of Euler's.
"""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from distrijax.config import entry
from distrijax.schedulers import tables
from distrijax.schedulers.base import Request
from distrijax.schedulers.predictions import terms
from distrijax.schedulers.schedule import Schedule
from distrijax.schedulers.sigma import SigmaScheduler, derivative_factors, init_noise_sigma, input_norm

Row: TypeAlias = dict[str, np.ndarray]
"""Factors by source: sample, derivative (by the noise level, (x - x0) / sigma) and noise, float64 [S - 1] each."""


@dataclass(frozen=True)
class Pair:
    """The coefficients of all steps but the last.

    Attributes:
        sigma: noise level of the second evaluation, float64 [S - 1].
        there: what the latents of the second evaluation are made of.
        held: what is settled of the step's result is made of, like `there` of what the first evaluation has.
        rest: what the second evaluation adds to it.
    """

    sigma: np.ndarray
    there: Row
    held: Row
    rest: Row


@dataclass(frozen=True, kw_only=True)
class TwoEvaluationScheduler(SigmaScheduler):
    """The options and tables that these solvers share; each adds its `_pair`."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False

    order = 2
    holds = True
    rules: ClassVar = {"prediction_type": entry.choice("epsilon", "v_prediction")}
    rounds_karras_timesteps: ClassVar[bool] = False

    def _pair(self, now: np.ndarray, after: np.ndarray) -> Pair:
        """Return the coefficients of steps between noise levels, none of them zero."""
        raise NotImplementedError

    def _second_timesteps(self, times: np.ndarray, pair: Pair) -> np.ndarray:
        """Return the timesteps of the second evaluations, [S - 1]."""
        return tables.timestep_of(pair.sigma.astype(np.float32), np.log(self.train_sigmas))

    def _build(self, request: Request) -> Schedule:
        times, sigmas = self._placed(request.steps, request.timesteps)
        times = times.round() if self.use_karras_sigmas and self.rounds_karras_timesteps else times
        levels = sigmas.astype(np.float64)
        pair = self._pair(levels[:-2], levels[1:-1])
        at = _alternate(sigmas[:-1], pair.sigma)  # the noise level of each evaluation
        zero = np.zeros(request.steps - 1)
        to_clean = {"sample": 1.0, "derivative": -levels[-2]}  # the last step

        sources = sorted(pair.there.keys() | pair.held.keys() | pair.rest.keys() | to_clean.keys())

        def rows(target: str, first: Row, second: Row, last: dict[str, float]) -> Row:
            def column(source: str) -> np.ndarray:
                return _alternate(np.append(first.get(source, zero), last.get(source, 0.0)), second.get(source, zero))

            names = {"derivative": "estimate_0"}
            return terms(target, **{names.get(source, source): column(source) for source in sources})

        coefficients: Row = {"input_norm": input_norm(at).astype(np.float32)}
        of_sample, of_prediction = derivative_factors(self.prediction_type, at)
        coefficients |= terms("estimate_0", sample=of_sample, prediction=of_prediction)
        coefficients |= rows("next", pair.there, pair.rest, to_clean) | rows("held", pair.held, {}, {})
        second = np.arange(len(at)) % 2
        coefficients |= terms("next", held=second)
        if getattr(self, "clip_sample", False):
            coefficients = _of_clean(coefficients, at)
        timesteps = _alternate(times, self._second_timesteps(times, pair)).astype(np.float32)
        # As diffusers has it, the level before a second evaluation is that of the step's end, wherever it evaluates.
        step_of = np.arange(len(at)) // 2
        level = sigmas[step_of + second]
        sigma = init_noise_sigma(self.timestep_spacing, sigmas)
        draws = _alternate(np.append(zero == ("noise" not in pair.there), False), zero == ("noise" not in pair.rest))
        return Schedule(timesteps, coefficients, np.ones_like(level), level, sigma, draws, step_of)


def _of_clean(coefficients: Row, sigma: np.ndarray) -> Row:
    """Return the coefficients with the clean image, which can be clipped, as the estimate instead of the derivative."""
    derivative = {source: coefficients[f"estimate_0_from_{source}"] for source in ("sample", "prediction")}
    changed = terms("estimate_0", sample=1 - sigma * derivative["sample"], prediction=-sigma * derivative["prediction"])
    for target in ("next", "held"):
        share = coefficients[f"{target}_from_estimate_0"] / sigma
        changed |= {f"{target}_from_sample": coefficients[f"{target}_from_sample"] + share}
        changed |= {f"{target}_from_estimate_0": -share}
    return coefficients | changed


def _alternate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the first and the second rows of all steps in turn: [S] and [S - 1] make [2 S - 1]."""
    both = np.empty(len(first) + len(second), np.result_type(first, second))
    both[::2], both[1::2] = first, second
    return both

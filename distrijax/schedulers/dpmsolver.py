"""DPM-Solver++ of order 1 to 3, as an ODE or an SDE (Lu et al., arXiv 2211.01095), and its multistep form.

A step is a sum of the latents, the last one to three estimates of the clean image, and noise.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.config import entry
from distrijax.schedulers import tables
from distrijax.schedulers.base import Request, Scheduler
from distrijax.schedulers.exponential import Levels
from distrijax.schedulers.predictions import terms, to_clean
from distrijax.schedulers.schedule import Schedule
from distrijax.schedulers.trained import SpacedScheduler, TrainedScheduler


@dataclass(frozen=True, kw_only=True)
class DPMSolver(Scheduler):
    """The options of every form of the solver."""

    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    final_sigmas_type: str = "zero"

    rules: ClassVar = {
        "algorithm_type": entry.choice("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": entry.choice("midpoint", "heun"),
        "solver_order": entry.whole(1, 3),
    }
    aliases: ClassVar = {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    }
    off: ClassVar[tuple[str, ...]] = ("thresholding", "use_flow_sigmas", "use_dynamic_shifting", "variance_type")

    @property
    def memory(self) -> int:
        return self.solver_order - 1

    @property
    def _stochastic(self) -> bool:
        return self.algorithm_type == "sde-dpmsolver++"


@dataclass(frozen=True, kw_only=True)
class MultistepDPMSolver(DPMSolver):
    """The multistep form. Whatever its order, a step evaluates the U-Net once: earlier estimates are used again."""

    euler_at_final: bool = False

    def _steps(self, levels: Levels, start: int) -> dict[str, np.ndarray]:
        """Return the coefficients of a run through the levels that begins, without history, at `start`."""
        steps = len(levels.sigma) - 1
        with np.errstate(all="ignore"):  # a step may be empty, or the last one infinite; NaN is rejected at the end
            rows = np.stack([self._factors(levels, i, self._order(i, steps, start)) for i in range(steps)])
        return terms("next", sample=rows[:, 0], noise=rows[:, 1], estimates=rows[:, 2:])

    def _order(self, index: int, steps: int, start: int) -> int:
        """Return the order of a step: it rises as estimates become available, and falls at the end of the run."""
        available = max(index - start, 0) + 1
        few = self.lower_order_final and steps < 15
        if index == steps - 1 and (self.euler_at_final or few or self.final_sigmas_type == "zero"):
            return 1
        if index == steps - 2 and few:
            return min(self.solver_order, available, 2)
        return min(self.solver_order, available)

    def _factors(self, levels: Levels, index: int, order: int) -> np.ndarray:
        """Return the factors of (sample, noise, this estimate, the one before, ...), [2 + solver_order]."""
        parts = levels.parts(index, index + 1, stochastic=self._stochastic)
        factors = np.zeros(2 + self.solver_order)
        factors[:3] = parts.sample, parts.noise, parts.gain
        if order == 1:
            return factors
        h = levels.span(index, index + 1)
        r0 = levels.span(index - 1, index) / h
        first = np.array([1, -1, 0]) / r0  # first difference, of the estimates of age 0, 1, 2
        if order == 2:
            past = (parts.gain * np.float32(0.5) if self.solver_type == "midpoint" else parts.slope) * first
        else:
            r1 = levels.span(index - 2, index - 1) / h
            second = (first - np.array([0, 1, -1]) / r1) / (r0 + r1)
            past = parts.slope * (first + r0 * second) + parts.curve * second
        factors[2:] += past[: self.solver_order]
        return factors


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistepScheduler(MultistepDPMSolver, SpacedScheduler):
    """Multistep DPM-Solver++, step for step as in diffusers; the SDE form draws noise at every step."""

    rescale_betas_zero_snr: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    lambda_min_clipped: float = -float("inf")

    class_name = "DPMSolverMultistepScheduler"
    noise_dtype = np.float32
    custom: ClassVar = ("timesteps",)

    def _build(self, request: Request) -> Schedule:
        times, ratios = self._placed(request.steps, request.timesteps)
        levels = Levels.preserving(ratios)
        coefficients = estimates_of_clean(self, levels) | self._steps(levels, request.start)
        return solver_schedule(times, levels, coefficients, draws=self._stochastic)

    def _placed(self, steps: int, chosen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the timesteps, int64 [S], and the noise-to-signal ratios, float32 [S + 1]."""
        if chosen is None and not self._uses_formula:
            train, span = self.num_train_timesteps, clipped_span(self, self.lambda_min_clipped)
            chosen = tables.spaced_timesteps(
                self.timestep_spacing, steps, train, self.steps_offset, drop_last=True, span=span
            )
        rounded = (self.use_karras_sigmas or self.use_lu_lambdas) and self.beta_schedule != "squaredcos_cap_v2"
        return placed_ratios(self, steps, chosen, rounded=rounded, final=self.final_sigmas_type)

    def _formula_sigmas(self, low: float, high: float, steps: int) -> np.ndarray:
        if not self.use_lu_lambdas:
            return super()._formula_sigmas(low, high, steps)
        log_table = np.log(self.train_sigmas)  # uniform in the logarithm of the whole table's sigmas, in float32
        return np.exp(np.linspace(float(log_table[-1]), float(log_table[0]), steps))


def clipped_span(scheduler: TrainedScheduler, lambda_min_clipped: float) -> int:
    """Return the number of training timesteps whose log signal-to-noise ratio is not below the limit."""
    _, _, lambdas = tables.lambdas_of(scheduler.train_sigmas)
    return scheduler.num_train_timesteps - int(np.searchsorted(lambdas[::-1], np.float32(lambda_min_clipped)))


def placed_ratios(
    scheduler: TrainedScheduler, steps: int, chosen: np.ndarray | None, *, rounded: bool, final: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the timesteps, int64 [S], and the noise-to-signal ratios, float32 [S + 1], `chosen` or by a formula.

    Args:
        rounded: whether timesteps of the formula's levels are rounded, not cut off.
        final: `final_sigmas_type`.
    """
    table = scheduler.train_sigmas
    if chosen is None:
        ratios = scheduler._formula_sigmas(float(table[0]), float(table[-1]), steps)
        times = tables.timestep_of(ratios, np.log(table))
        times = times.round() if rounded else times
    else:
        times = chosen.round()
        ratios = np.interp(times, np.arange(scheduler.num_train_timesteps), table)
    last = table[0] if final == "sigma_min" else 0.0
    return times.astype(np.int64), np.append(ratios, last).astype(np.float32)


def estimates_of_clean(scheduler: Scheduler, levels: Levels) -> dict[str, np.ndarray]:
    """Return the coefficients of the estimate of the clean image at every level but the last."""
    of_sample, of_prediction = to_clean(scheduler.prediction_type, levels.alpha[:-1], levels.sigma[:-1])
    return terms("estimate_0", sample=of_sample, prediction=of_prediction)


def solver_schedule(times: np.ndarray, levels: Levels, coefficients: dict[str, np.ndarray], *, draws: bool) -> Schedule:
    """Return the schedule of a run whose latents have unit variance throughout."""
    steps = np.arange(len(times))
    signal, noise_level = levels.alpha[:-1], levels.sigma[:-1]
    return Schedule(times.astype(np.int32), coefficients, signal, noise_level, 1.0, np.full(len(times), draws), steps)

"""DPM-Solver++ in its singlestep form: groups of one to three evaluations, each from where its group began."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.schedulers.base import Request
from distrijax.schedulers.dpmsolver import (
    DPMSolver,
    clipped_span,
    estimates_of_clean,
    placed_ratios,
    solver_schedule,
)
from distrijax.schedulers.exponential import Levels
from distrijax.schedulers.predictions import terms
from distrijax.schedulers.schedule import Schedule
from distrijax.schedulers.trained import TrainedScheduler


@dataclass(frozen=True, kw_only=True)
class DPMSolverSinglestepScheduler(DPMSolver, TrainedScheduler):
    """Singlestep DPM-Solver++, step for step as in diffusers: an evaluation is a step, of order 1, 2, (3,) 1, 2, ...

    An evaluation of order 2 or 3 repeats the way from the beginning of its group with better derivatives. As in
    diffusers, `lower_order_final` counts as set if the order does not divide the number of steps, and if the run ends
    without noise.
    """

    lower_order_final: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    lambda_min_clipped: float = -float("inf")

    holds = True  # the latents where the group began
    class_name = "DPMSolverSinglestepScheduler"
    custom: ClassVar = ("timesteps",)

    def _build(self, request: Request) -> Schedule:
        steps, chosen = request.steps, request.timesteps
        if chosen is None and not self._uses_formula:
            span = clipped_span(self, self.lambda_min_clipped)
            chosen = np.linspace(0, span - 1, steps + 1)[:0:-1]
        final = self.final_sigmas_type
        times, ratios = placed_ratios(self, steps, chosen, rounded=self.use_karras_sigmas, final=final)
        levels = Levels.preserving(ratios)
        planned = self._orders(steps)
        orders = [min(planned[i], max(i - request.start, 0) + 1) for i in range(steps)]
        rows = np.zeros((steps, 2 + self.solver_order))
        with np.errstate(all="ignore"):  # the last step may be infinite; NaN is rejected at the end
            for i, order in enumerate(orders):
                rows[i] = self._factors(levels, i, order)
        begins = np.asarray(orders) == 1
        coefficients = estimates_of_clean(self, levels)
        coefficients |= terms(
            "next",
            sample=np.where(begins, rows[:, 0], 0),
            held=np.where(begins, 0, rows[:, 0]),
            noise=rows[:, 1],
            estimates=rows[:, 2:],
        )
        coefficients |= terms("held", sample=begins, held=~begins)
        return solver_schedule(times, levels, coefficients, draws=self._stochastic)

    def _orders(self, steps: int) -> list[int]:
        """Return the order of each step of a whole run."""
        most = self.solver_order
        groups = [order for _ in range(steps // most) for order in range(1, most + 1)]
        if self.lower_order_final or steps % most or self.final_sigmas_type == "zero":
            rest = steps % most
            if most > 1 and not rest:  # the last group has one evaluation less than it could, and one more of order 1
                groups[-1] = 1
            groups += range(1, rest + 1)
        if self.final_sigmas_type == "zero":
            groups[-1] = 1
        return groups

    def _factors(self, levels: Levels, index: int, order: int) -> np.ndarray:
        """Return the factors of (sample where the group began, noise, this estimate, ...), [2 + solver_order]."""
        first, end = index - order + 1, index + 1
        parts = levels.parts(first, end, stochastic=self._stochastic)
        factors = np.zeros(2 + self.solver_order)
        factors[:2] = parts.sample, parts.noise
        ages = np.zeros(3)  # of the estimates of age 0, 1, 2
        ages[order - 1] = parts.gain
        h = levels.span(first, end)
        if order == 2:
            difference = np.array([1, -1, 0]) / (levels.span(first, index) / h)
            ages += (parts.gain * np.float32(0.5) if self.solver_type == "midpoint" else parts.slope) * difference
        elif order == 3:
            r0, r1 = levels.span(first, index) / h, levels.span(first, index - 1) / h
            near, far = np.array([0, 1, -1]) / r1, np.array([1, 0, -1]) / r0
            if self.solver_type == "midpoint":
                ages += parts.slope * far
            else:
                slope, curve = (r0 * near - r1 * far) / (r0 - r1), 2 * (far - near) / (r0 - r1)
                ages += parts.slope * slope + parts.curve * curve
        factors[2:] += ages[: self.solver_order]
        return factors

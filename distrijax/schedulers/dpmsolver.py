"""DPM-Solver++, multistep, of order 1 to 3, as an ODE or an SDE (Lu et al., arXiv 2211.01095).

A step is a combination of the sample, the last one to three predictions of the clean image, and noise, with factors
that depend on the step only: they are worked out on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from distrijax.schedulers import tables
from distrijax.schedulers.common import Array, Row, Schedule, Scheduler, State, combine, to_clean


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistepScheduler(Scheduler):
    """diffusers' `DPMSolverMultistepScheduler`. The SDE form draws noise at every step, the last one included.

    The step count of a first, second or third order run is the number of U-Net calls: earlier predictions are reused.
    """

    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    final_sigmas_type: str = "zero"
    lambda_min_clipped: float = -float("inf")

    class_name = "DPMSolverMultistepScheduler"
    choices: ClassVar = {"algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "solver_type": ("midpoint", "heun")}
    aliases: ClassVar = {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    }
    neutral: ClassVar = {
        "thresholding": False,
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
        "variance_type": None,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.solver_order <= 3:
            raise self._error(f"solver_order must be 1, 2 or 3, got {self.solver_order}")

    def schedule(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float = 0.0,
    ) -> Schedule:
        steps, chosen, _ = self._choose(num_inference_steps, timesteps, sigmas, takes_timesteps=True)
        visited, levels = self._placed(steps, None if chosen is None else self._whole(chosen))
        steps = len(visited)
        alpha, sigma, _ = tables.lambdas_of(levels[:-1])
        clean_sample, clean_prediction = to_clean(self.prediction_type, alpha, sigma)
        with np.errstate(all="ignore"):  # a step may be empty, or the last one infinite; NaN is refused at the end
            factors = np.stack([self._factors(levels, index, self._order(index, steps)) for index in range(steps)])
        rows = {"clean_sample": clean_sample, "clean_prediction": clean_prediction}
        rows |= {"sample": factors[:, 0], "fresh_noise": factors[:, 1]}
        rows |= {f"clean_{age}": factors[:, 2 + age] for age in range(self.solver_order)}
        return self._finished(visited.astype(np.int32), rows, 1.0, self.algorithm_type == "sde-dpmsolver++")

    def _placed(self, steps: int, chosen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps and noise levels -> (int64 [S], float32 [S + 1])."""
        table = self.train_sigmas
        train = self.num_train_timesteps
        final = table[0] if self.final_sigmas_type == "sigma_min" else 0.0
        if self._uses_formula:
            if self.use_lu_lambdas:  # uniform in the logarithm of the whole table's sigmas
                log_table = np.log(table)
                noise = np.exp(np.linspace(float(log_table[-1]), float(log_table[0]), steps))
            else:
                noise = self._formula_sigmas(float(table[0]), float(table[-1]), steps)
            visited = tables.timestep_of(noise, np.log(table))
            if (self.use_karras_sigmas or self.use_lu_lambdas) and self.beta_schedule != "squaredcos_cap_v2":
                visited = visited.round()
        else:
            if chosen is None:
                # timesteps of less than this log signal-to-noise ratio are left out, for the cosine schedule
                _, _, lambdas = tables.lambdas_of(table)
                span = train - int(np.searchsorted(lambdas[::-1], np.float32(self.lambda_min_clipped)))
                chosen = tables.spaced_timesteps(
                    self.timestep_spacing, steps, train, self.steps_offset, drop_last=True, span=span
                )
            visited = chosen.round()
            noise = np.interp(visited, np.arange(train), table)
        return visited.astype(np.int64), np.append(noise, final).astype(np.float32)

    def _order(self, index: int, steps: int) -> int:
        """Order of a step: it rises as predictions become available, and falls again at the end."""
        few = self.lower_order_final and steps < 15
        if index == steps - 1 and (self.euler_at_final or few or self.final_sigmas_type == "zero"):
            return 1
        if index == steps - 2 and few:
            return min(self.solver_order, index + 1, 2)
        return min(self.solver_order, index + 1)

    def _factors(self, levels: np.ndarray, index: int, order: int) -> np.ndarray:
        """Factors of (sample, noise, this prediction, the one before, ...) -> [2 + solver_order].

        h is the step in the half log signal-to-noise ratio, infinite when the step ends without noise. In float32, in
        the order of the original: for small h the terms of the third order cancel to their rounding, which is then
        part of its result (50 steps of order 3 with beta sigmas would differ by 1e-3, not 2e-4).
        """
        one, half = np.float32(1), np.float32(0.5)
        alpha, sigma, lambdas = tables.lambdas_of(levels)
        h = lambdas[index + 1] - lambdas[index]
        stochastic = self.algorithm_type == "sde-dpmsolver++"
        rate = 2 * h if stochastic else h
        lost = tables.exp32(-rate) - one
        gain = -alpha[index + 1] * lost
        factors = np.zeros(2 + self.solver_order)
        factors[0] = sigma[index + 1] / sigma[index] * (tables.exp32(-h) if stochastic else one)
        factors[1] = sigma[index + 1] * np.sqrt(-lost) if stochastic else 0
        factors[2] = gain
        if order == 1:
            return factors

        r0 = (lambdas[index] - lambdas[index - 1]) / h
        first = np.array([1, -1, 0]) / r0  # first difference, of the predictions of age 0, 1, 2
        slope = alpha[index + 1] * (lost / rate + one)
        if order == 2:
            past = (gain * half if self.solver_type == "midpoint" else slope) * first
        else:
            r1 = (lambdas[index - 1] - lambdas[index - 2]) / h
            second = (first - np.array([0, 1, -1]) / r1) / (r0 + r1)
            # the sign of the half differs between the two forms in diffusers, which is followed here
            curve = -alpha[index + 1] * ((lost + rate) / rate**2 + (half if stochastic else -half))
            past = slope * (first + r0 * second) + curve * second
        factors[2:] += past[: self.solver_order]
        return factors

    def init_state(self, sample: Array) -> State:
        """The clean images predicted before, youngest first."""
        return tuple(jnp.zeros_like(sample) for _ in range(self.solver_order - 1))

    def step(
        self, row: Row, state: State, prediction: Array, sample: Array, noise: Array | None
    ) -> tuple[Array, State]:
        clean = combine((row["clean_sample"], sample), (row["clean_prediction"], prediction))
        cleans = (clean, *state)
        past = [(row[f"clean_{age}"], image) for age, image in enumerate(cleans)]
        sample = combine((row["sample"], sample), *past, (row["fresh_noise"], noise))
        return sample, cleans[:-1]

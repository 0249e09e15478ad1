"""DPM-Solver++, multistep, of order 1 to 3, as an ODE or an SDE (Lu et al., arXiv 2211.01095).

A step is a combination of the sample, the last one to three predictions of the clean image, and noise. Its factors
depend only on the step and are computed on the host.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from distrijax.config import entry
from distrijax.schedulers import tables
from distrijax.schedulers.base import Request, Scheduler
from distrijax.schedulers.predictions import combine, to_clean
from distrijax.schedulers.schedule import Array, Coefficients, Schedule, State


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistepScheduler(Scheduler):
    """Multistep DPM-Solver++, step for step as in diffusers; the SDE form draws noise at every step.

    Whatever the order of the solver, a step evaluates the U-Net once: earlier predictions are reused.
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
    rules: ClassVar = {
        "algorithm_type": entry.choice("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": entry.choice("midpoint", "heun"),
        "solver_order": entry.whole(1, 3),
    }
    aliases: ClassVar = {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    }
    off: ClassVar = ("thresholding", "use_flow_sigmas", "use_dynamic_shifting", "variance_type")
    custom: ClassVar = ("timesteps",)
    noise_dtype = np.float32

    def _build(self, request: Request) -> Schedule:
        times, levels = self._placed(request.steps, request.timesteps)
        steps = len(times)
        orders = [self._order(index, steps, request.start) for index in range(steps)]
        alpha, sigma, _ = tables.lambdas_of(levels[:-1])
        clean_sample, clean_prediction = to_clean(self.prediction_type, alpha, sigma)
        with np.errstate(all="ignore"):  # a step may be empty, or the last one infinite; NaN is rejected at the end
            factors = np.stack([self._factors(levels, index, order) for index, order in enumerate(orders)])
        coefficients = {"clean_sample": clean_sample, "clean_prediction": clean_prediction}
        coefficients |= {"sample": factors[:, 0], "fresh_noise": factors[:, 1]}
        coefficients |= {f"clean_{age}": factors[:, 2 + age] for age in range(self.solver_order)}
        draws = np.full(steps, self.algorithm_type == "sde-dpmsolver++")
        return Schedule(times.astype(np.int32), coefficients, alpha, sigma, 1.0, draws)

    def _placed(self, steps: int, chosen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the timesteps, int64 [S], and the noise levels, float32 [S + 1]."""
        table = self.train_sigmas
        train = self.num_train_timesteps
        final = table[0] if self.final_sigmas_type == "sigma_min" else 0.0
        if self._uses_formula:
            if self.use_lu_lambdas:  # uniform in the logarithm of the whole table's sigmas
                log_table = np.log(table)
                noise = np.exp(np.linspace(float(log_table[-1]), float(log_table[0]), steps))
            else:
                noise = self._formula_sigmas(float(table[0]), float(table[-1]), steps)
            times = tables.timestep_of(noise, np.log(table))
            if (self.use_karras_sigmas or self.use_lu_lambdas) and self.beta_schedule != "squaredcos_cap_v2":
                times = times.round()
        else:
            if chosen is None:
                # timesteps below this log signal-to-noise ratio are dropped, for the cosine schedule
                _, _, lambdas = tables.lambdas_of(table)
                span = train - int(np.searchsorted(lambdas[::-1], np.float32(self.lambda_min_clipped)))
                chosen = tables.spaced_timesteps(
                    self.timestep_spacing, steps, train, self.steps_offset, drop_last=True, span=span
                )
            times = chosen.round()
            noise = np.interp(times, np.arange(train), table)
        return times.astype(np.int64), np.append(noise, final).astype(np.float32)

    def _order(self, index: int, steps: int, start: int) -> int:
        """Return the order of a step: it rises as predictions become available, and falls at the end of the run."""
        available = max(index - start, 0) + 1
        few = self.lower_order_final and steps < 15
        if index == steps - 1 and (self.euler_at_final or few or self.final_sigmas_type == "zero"):
            return 1
        if index == steps - 2 and few:
            return min(self.solver_order, available, 2)
        return min(self.solver_order, available)

    def _factors(self, levels: np.ndarray, index: int, order: int) -> np.ndarray:
        """Return the factors of (sample, noise, this prediction, the one before, ...), [2 + solver_order].

        h is the step in the half log signal-to-noise ratio, infinite when the step ends without noise. float32, in
        diffusers' order: for small h the third-order terms cancel down to their rounding, which becomes part of its
        result (50 steps of order 3 with beta sigmas would differ by 1e-3, not 2e-4).
        """
        one, half = np.float32(1), np.float32(0.5)
        alpha, sigma, lambdas = tables.lambdas_of(levels)
        h = lambdas[index + 1] - lambdas[index]
        stochastic = self.algorithm_type == "sde-dpmsolver++"
        rate = 2 * h if stochastic else h
        decay = tables.exp32(-rate) - one
        gain = -alpha[index + 1] * decay
        factors = np.zeros(2 + self.solver_order)
        factors[0] = sigma[index + 1] / sigma[index] * (tables.exp32(-h) if stochastic else one)
        factors[1] = sigma[index + 1] * np.sqrt(-decay) if stochastic else 0
        factors[2] = gain
        if order == 1:
            return factors

        r0 = (lambdas[index] - lambdas[index - 1]) / h
        first = np.array([1, -1, 0]) / r0  # first difference, of the predictions of age 0, 1, 2
        slope = alpha[index + 1] * (decay / rate + one)
        if order == 2:
            past = (gain * half if self.solver_type == "midpoint" else slope) * first
        else:
            r1 = (lambdas[index - 1] - lambdas[index - 2]) / h
            second = (first - np.array([0, 1, -1]) / r1) / (r0 + r1)
            # as in diffusers, the sign of the half differs between the two forms
            curve = -alpha[index + 1] * ((decay + rate) / rate**2 + (half if stochastic else -half))
            past = slope * (first + r0 * second) + curve * second
        factors[2:] += past[: self.solver_order]
        return factors

    def init_state(self, sample: Array) -> State:
        """Return zeros in place of earlier predictions of the clean image, latest first."""
        return tuple(jnp.zeros_like(sample) for _ in range(self.solver_order - 1))

    def step(
        self, coefficients: Coefficients, state: State, prediction: Array, sample: Array, noise: Array | None
    ) -> tuple[Array, State]:
        c = coefficients
        clean = combine((c["clean_sample"], sample), (c["clean_prediction"], prediction))
        cleans = (clean, *state)
        past = [(c[f"clean_{age}"], image) for age, image in enumerate(cleans)]
        sample = combine((c["sample"], sample), *past, (c["fresh_noise"], noise))
        return sample, cleans[:-1]

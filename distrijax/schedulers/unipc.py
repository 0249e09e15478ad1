"""UniPC, multistep (Zhao et al., arXiv 2302.04867): each step first corrects the previous one, then predicts the next.

Both halves are sums of the previous sample and the present and past estimates, and so is the one after the other.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.config import entry
from distrijax.schedulers import tables
from distrijax.schedulers.base import Request
from distrijax.schedulers.predictions import terms, to_clean, to_noise
from distrijax.schedulers.schedule import Schedule
from distrijax.schedulers.trained import SpacedScheduler


@dataclass(frozen=True, kw_only=True)
class UniPCMultistepScheduler(SpacedScheduler):
    """UniPC, step for step as in diffusers; with `predict_x0` off, it extrapolates the noise.

    With solver_type bh1 and a final sigma of zero, diffusers multiplies zero by infinity in the last step and returns
    NaN; that term vanishes, and is omitted here.
    """

    rescale_betas_zero_snr: bool = False
    solver_order: int = 2
    predict_x0: bool = True
    solver_type: str = "bh2"
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    final_sigmas_type: str = "zero"
    sigma_min: float | None = None
    sigma_max: float | None = None

    holds = True  # the corrected sample of the previous step
    class_name = "UniPCMultistepScheduler"
    rules: ClassVar = {"solver_type": entry.choice("bh1", "bh2")}
    aliases: ClassVar = {"solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}}
    off: ClassVar = ("thresholding", "use_flow_sigmas", "use_dynamic_shifting", "shift_terminal", "solver_p")

    def _build(self, request: Request) -> Schedule:
        times, levels = self._placed(request.steps)
        steps = len(times)
        alpha, sigma, _ = tables.lambdas_of(levels[:-1])
        of_sample, of_prediction = (to_clean if self.predict_x0 else to_noise)(self.prediction_type, alpha, sigma)

        order = self.solver_order
        history = [max(i - request.start, 0) for i in range(steps)]  # predictions of earlier steps
        orders = [min(order, steps - i if self.lower_order_final else order, history[i] + 1) for i in range(steps)]
        # The previous step, corrected: from this step's sample, the one that it began with, and the estimates.
        correct, predict = np.zeros((steps, 3 + order)), np.zeros((steps, 1 + order))
        for i in range(steps):
            predict[i] = self._predictor(levels, i, orders[i])
            if history[i] and i - 1 not in self.disable_corrector:
                correct[i, 1:] = self._corrector(levels, i, orders[i - 1])
            else:
                correct[i, 0] = 1.0  # keep the sample
        with np.errstate(invalid="ignore"):
            both = predict[:, :1] * correct
        both[:, 2:-1] += predict[:, 1:]
        coefficients = terms("estimate_0", sample=of_sample, prediction=of_prediction)
        coefficients |= terms("next", sample=both[:, 0], held=both[:, 1], estimates=both[:, 2:])
        coefficients |= terms("held", sample=correct[:, 0], held=correct[:, 1], estimates=correct[:, 2:])
        draws, step_of = np.full(steps, False), np.arange(steps)
        return Schedule(times.astype(np.int32), coefficients, alpha, sigma, 1.0, draws, step_of)

    @property
    def memory(self) -> int:
        return self.solver_order

    def _placed(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the timesteps, int64 [S], and the noise levels, float32 [S + 1]."""
        table = self.train_sigmas
        train = self.num_train_timesteps
        if self._uses_formula:
            low = float(table[0]) if self.sigma_min is None else self.sigma_min
            high = float(table[-1]) if self.sigma_max is None else self.sigma_max
            noise = self._formula_sigmas(low, high, steps)
            times = tables.timestep_of(noise, np.log(table))
            times = times.round() if self.use_karras_sigmas else times
            lowest = noise[-1]
        else:
            times = tables.spaced_timesteps(
                self.timestep_spacing, steps, train, self.steps_offset, drop_last=True
            ).round()
            noise, lowest = np.interp(times, np.arange(train), table), table[0]
        final = lowest if self.final_sigmas_type == "sigma_min" else 0.0
        return times.astype(np.int64), np.append(noise, final).astype(np.float32)

    def _update(
        self, levels: np.ndarray, index: int, order: int
    ) -> tuple[np.ndarray, float, np.ndarray, np.ndarray, np.ndarray]:
        """Return the parts of B(h) updates from level `index` to the next (arXiv 2302.04867, equations 7 to 11).

        Returns:
            factors of (sample, prediction at `index`) of the first-order step, float64 [2]; the factor of the
            differences; ratios r of past steps and 1, float64 [order]; and the system R rho = b of their weights.
        """
        alpha, sigma, lambdas = tables.lambdas_of(levels)
        h = lambdas[index + 1] - lambdas[index]
        ratios = [(lambdas[index - age] - lambdas[index]) / h for age in range(1, order)]
        r = np.asarray([*ratios, 1], np.float32)
        to, other = (alpha, sigma) if self.predict_x0 else (sigma, alpha)
        hh = -h if self.predict_x0 else h
        phi_1 = tables.expm1_32(hh)
        scale = phi_1 if self.solver_type == "bh2" else hh
        # float32 in diffusers' order: for small h these differences cancel down to their rounding, which becomes
        # part of its result (50 steps of order 3 with beta sigmas would differ by 2e-2, not 6e-4)
        phi, factorial, b = phi_1 / hh - np.float32(1), 1, []
        for k in range(1, order + 1):
            b.append(phi * np.float32(factorial) / scale)
            factorial *= k + 1
            phi = phi / hh - np.float32(1 / factorial)
        matrix = np.stack([r**k for k in range(order)])
        first = np.asarray([other[index + 1] / other[index], -to[index + 1] * phi_1], np.float64)
        return first, -float(to[index + 1] * scale), r.astype(np.float64), matrix.astype(np.float64), np.asarray(b)

    def _predictor(self, levels: np.ndarray, index: int, order: int) -> np.ndarray:
        """Return the factors of (sample, this prediction, the one before, ...), float64 [1 + solver_order]."""
        with np.errstate(all="ignore"):  # the last step's h may be infinite; what is not finite is rejected at the end
            first, scale, r, matrix, b = self._update(levels, index, order)
            factors = np.zeros(1 + self.solver_order)
            factors[:2] = first
            if order > 1:
                weights = np.full(1, 0.5) if order == 2 else _solve(matrix[:-1, :-1], b[:-1])
                share = scale * weights / r[:-1]
                factors[1] -= share.sum()
                factors[2 : 1 + order] += share
        return factors

    def _corrector(self, levels: np.ndarray, index: int, order: int) -> np.ndarray:
        """Return the factors of (previous sample, this prediction, the one before, ...), float64 [2 + solver_order]."""
        with np.errstate(all="ignore"):
            first, scale, r, matrix, b = self._update(levels, index - 1, order)
            weights = np.full(1, 0.5) if order == 1 else _solve(matrix, b)
            share = scale * weights / r  # the last one, with r = 1, weighs the difference to this prediction
            factors = np.zeros(2 + self.solver_order)
            factors[[0, 2]] = first
            factors[2] -= share.sum()
            factors[1] += share[-1]
            factors[3 : 2 + order] += share[:-1]
        return factors


def _solve(matrix: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the solution of a small linear system, or NaN if there is none, which `schedule` rejects."""
    if not (np.all(np.isfinite(matrix)) and np.all(np.isfinite(b))):
        return np.full(len(b), np.nan)
    try:
        return np.linalg.solve(matrix, b.astype(np.float64))
    except np.linalg.LinAlgError:
        return np.full(len(b), np.nan)

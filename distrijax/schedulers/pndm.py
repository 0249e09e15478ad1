"""Pseudo numerical methods (Liu et al., arXiv 2202.09778): PLMS, with or without Runge-Kutta steps at the beginning."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distrijax.config import entry
from distrijax.schedulers.base import Request
from distrijax.schedulers.predictions import terms
from distrijax.schedulers.schedule import Schedule
from distrijax.schedulers.trained import SpacedScheduler

_ADAMS = {1: [1.0], 2: [1.5, -0.5], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
"""Number of predictions -> the weight of each in the next step, latest first (Adams and Bashforth)."""

_RUNGE_KUTTA = 4
"""Evaluations of a Runge-Kutta step; three such steps make the predictions that PLMS begins with."""


@dataclass(frozen=True, kw_only=True)
class PNDMScheduler(SpacedScheduler):
    """PNDM, step for step as in diffusers: with `skip_prk_steps` PLMS, whose first step evaluates the U-Net twice.

    Without, the first three steps are Runge-Kutta steps of four evaluations each; such a run has four steps or more,
    and cannot begin in the middle.
    """

    timestep_spacing: str = "leading"
    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False

    holds = True  # the latents where a step of several evaluations began
    class_name = "PNDMScheduler"
    rules: ClassVar = {"prediction_type": entry.choice("epsilon", "v_prediction")}

    @property
    def memory(self) -> int:
        return 4 if self.skip_prk_steps else 3 * _RUNGE_KUTTA

    def _build(self, request: Request) -> Schedule:
        spaced = self._training_steps(request.steps)
        stride = self.num_train_timesteps // request.steps
        if self.skip_prk_steps:
            rows = _plms_rows(spaced, stride, request.start)
        else:
            if request.steps < _RUNGE_KUTTA or request.start:
                raise self._error(
                    "a run that begins in the middle, or has less than 4 steps, cannot have Runge-Kutta steps; set "
                    "skip_prk_steps to true"
                )
            rows = _runge_kutta_rows(spaced, stride)
        times, now, after, fresh, step_of = (
            np.array(column) for column in zip(*[row[:5] for row in rows], strict=True)
        )
        weights = np.zeros((len(rows), self.memory + 1))
        for row, (*_, aged) in zip(weights, rows, strict=True):
            for age, weight in aged.items():
                row[age] = weight
        if times.max() >= self.num_train_timesteps or now.max() >= self.num_train_timesteps:
            raise self._error(f"timestep {max(times.max(), now.max())} leaves the training timesteps; use more steps")

        table = self.alphas_cumprod
        of_sample, of_prediction = self._transfer(table[now], self._power(after))
        sample = of_sample
        if self.prediction_type == "v_prediction":  # the noise is sqrt(a) v + sqrt(1 - a) x
            sample = of_sample + of_prediction * np.sqrt(1 - table[now].astype(np.float64))
            of_prediction = of_prediction * np.sqrt(table[now].astype(np.float64))
        ones = np.ones(len(rows))
        coefficients = terms("estimate_0", sample=0 * ones, prediction=ones)
        coefficients |= terms(
            "next",
            sample=np.where(fresh, sample, 0),
            held=np.where(fresh, 0, sample),
            estimates=of_prediction[:, None] * weights,
        )
        coefficients |= terms("held", sample=fresh, held=~fresh)
        signal, noise_level = np.sqrt(table[times]), np.sqrt(1 - table[times])
        draws = np.full(len(rows), False)
        return Schedule(times.astype(np.int32), coefficients, signal, noise_level, 1.0, draws, step_of)

    def _power(self, timesteps: np.ndarray) -> np.ndarray:
        """Return the signal power at timesteps, of which those below 0 are the end of the run."""
        final = np.float32(1) if self.set_alpha_to_one else self.alphas_cumprod[0]
        return np.where(timesteps >= 0, self.alphas_cumprod[np.maximum(timesteps, 0)], final)

    @staticmethod
    def _transfer(power: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the factors of the sample and of the noise in a step between signal powers (equation 11)."""
        a, b = power.astype(np.float64), after.astype(np.float64)
        difference = (after - power).astype(np.float64)  # float32, as diffusers subtracts
        return np.sqrt(b / a), -difference / (a * np.sqrt(1 - b) + np.sqrt(a * (1 - a) * b))


Rows = list[tuple[int, int, int, bool, int, dict[int, float]]]
"""For each evaluation: its timestep; the timesteps where the transfer begins and ends; whether it begins at the sample,
not at the held one; the step; and the weights of predictions by age."""


def _plms_rows(spaced: np.ndarray, stride: int, start: int) -> Rows:
    """Return the rows of a run of PLMS, preceded by unused ones for the steps before `start`.

    The first step that runs is taken twice, the second time with the average of the predictions at its two ends.
    """
    listed = [*spaced[:2], *spaced[1:]] if len(spaced) > 1 else list(spaced)
    rows: Rows = [(t, t, t, True, i, {0: 0.0}) for i, t in enumerate(listed[:start])]
    for count, t in enumerate(listed[start:]):
        if count == 1:
            rows.append((t, t + stride, t, False, start, {0: 0.5, 1: 0.5}))
            continue
        known = min(max(count, 1), 4)  # the prediction of the second evaluation, of age count - 1, is left out
        ages = [age for age in range(count + 1) if age != count - 1][:known]
        weights = dict(zip(ages, _ADAMS[known], strict=True))
        rows.append((t, t, t - stride, True, start + max(count - 1, 0), weights))
    return rows


def _runge_kutta_rows(spaced: np.ndarray, stride: int) -> Rows:
    """Return the rows of three Runge-Kutta steps and those of PLMS, which use the first prediction of each."""
    half = stride // 2
    rows: Rows = []
    for step in range(3):
        t, middle, end = spaced[step], spaced[step + 1] + half, spaced[step + 1]
        rows += [
            (t, t, t - half, True, step, {0: 1.0}),
            (middle, t, middle, False, step, {0: 1.0}),
            (middle, t, middle - half, False, step, {0: 1.0}),
            (end, t, end, False, step, {0: 1 / 6, 1: 1 / 3, 2: 1 / 3, 3: 1 / 6}),
        ]
    for step in range(3, len(spaced)):
        t = spaced[step]
        later = step - 2  # predictions of PLMS so far, this one among them
        ages = [*range(later), *range(later + 3, later + 12, _RUNGE_KUTTA)][:4]
        rows.append((t, t, t - stride, True, step, dict(zip(ages, _ADAMS[4], strict=True))))
    return rows

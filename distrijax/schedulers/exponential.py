"""The exponential integrator of DPM-Solver++ (arXiv 2211.01095): the parts of a step between two noise levels."""

from dataclasses import dataclass

import numpy as np

from distrijax.schedulers import tables


@dataclass(frozen=True)
class Parts:
    """The factors of a step.

    Attributes:
        sample: of the latents that it starts from.
        noise: of fresh noise.
        gain: of the estimate of the clean image at the start.
        slope: of its first derivative, by the half log signal-to-noise ratio.
        curve: of half of its second one.
    """

    sample: float
    noise: float
    gain: float
    slope: float
    curve: float


@dataclass(frozen=True)
class Levels:
    """The noise levels of a run.

    Attributes:
        alpha: signal, float32 [S + 1].
        sigma: noise, float32 [S + 1].
        lambdas: log(alpha / sigma), float32 [S + 1].
    """

    alpha: np.ndarray
    sigma: np.ndarray
    lambdas: np.ndarray

    @classmethod
    def preserving(cls, ratios: np.ndarray) -> "Levels":
        """Return the levels with alpha^2 + sigma^2 = 1 of noise-to-signal ratios."""
        return cls(*tables.lambdas_of(ratios))

    @classmethod
    def exploding(cls, sigmas: np.ndarray) -> "Levels":
        """Return the levels with alpha = 1."""
        return cls(np.ones_like(sigmas), sigmas, -tables.log32(sigmas))

    def span(self, start: int, end: int) -> np.float32:
        """Return the difference of the half log signal-to-noise ratios of two levels."""
        return self.lambdas[end] - self.lambdas[start]

    def parts(self, start: int, end: int, *, stochastic: bool) -> Parts:
        """Return the parts of a step from level `start` to level `end`, as an ODE or an SDE.

        The span is infinite if the step ends without noise. float32, in diffusers' order: for small spans the terms of
        third order cancel down to their rounding, which becomes part of its result (50 steps of order 3 with beta
        sigmas would differ by 1e-3, not 2e-4).
        """
        one, half = np.float32(1), np.float32(0.5)
        h = self.span(start, end)
        rate = 2 * h if stochastic else h
        decay = tables.exp32(-rate) - one
        return Parts(
            sample=self.sigma[end] / self.sigma[start] * (tables.exp32(-h) if stochastic else one),
            noise=self.sigma[end] * np.sqrt(-decay) if stochastic else 0.0,
            gain=-self.alpha[end] * decay,
            slope=self.alpha[end] * (decay / rate + one),
            # as in diffusers, the sign of the half differs between the two forms
            curve=-self.alpha[end] * ((decay + rate) / rate**2 + (half if stochastic else -half)),
        )

"""The linear multistep method of Adams and Bashforth, in the noise level, on steps of any size."""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import Polynomial

from distrijax.schedulers.base import Request
from distrijax.schedulers.predictions import terms
from distrijax.schedulers.schedule import Schedule
from distrijax.schedulers.sigma import SigmaScheduler, derivative_factors, init_noise_sigma, input_norm

_ORDER = 4


@dataclass(frozen=True, kw_only=True)
class LMSDiscreteScheduler(SigmaScheduler):
    """LMS of order 4, step for step as in diffusers: the derivative is a polynomial through the last four.

    As there, a run that begins later has the weights of the whole run, with zeros in place of the missing derivatives.
    """

    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False

    class_name = "LMSDiscreteScheduler"

    def _build(self, request: Request) -> Schedule:
        times, sigmas = self._placed(request.steps)
        now, levels = sigmas[:-1], sigmas.astype(np.float64)
        of_sample, of_prediction = derivative_factors(self.prediction_type, now)
        weights = np.zeros((len(now), _ORDER))
        for i in range(len(now)):
            order = min(i + 1, _ORDER)
            weights[i, :order] = _weights(levels[i + 1], levels[i - order + 1 : i + 1][::-1])
        coefficients = {"input_norm": input_norm(now)}
        coefficients |= terms("estimate_0", sample=of_sample, prediction=of_prediction)
        coefficients |= terms("next", sample=np.ones(len(now)), estimates=weights)
        sigma, steps = init_noise_sigma(self.timestep_spacing, sigmas), np.arange(len(now))
        draws = np.full(len(now), False)
        return Schedule(times.astype(np.float32), coefficients, np.ones_like(now), now, sigma, draws, steps)

    @property
    def memory(self) -> int:
        return _ORDER - 1


def _weights(end: float, nodes: np.ndarray) -> list[float]:
    """Return the integral from the first node to `end` of each node's Lagrange polynomial."""
    weights = []
    for j, node in enumerate(nodes):
        basis, scale = Polynomial([1.0]), end - nodes[0]  # in units of the step, for the digits
        for other in np.delete(nodes, j):
            basis *= Polynomial([(nodes[0] - other) / scale, 1.0]) / ((node - other) / scale)
        weights.append(float(basis.integ()(1.0) * scale))
    return weights

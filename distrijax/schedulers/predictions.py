"""Factors, computed on the host, that turn a prediction of the U-Net into the clean image or the noise."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from distrijax.schedulers.schedule import Array


def to_clean(prediction_type: str, alpha: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors of the sample and of the prediction whose sum is the clean image x0.

    The sample is x = alpha x0 + sigma noise; v is alpha noise - sigma x0 (arXiv 2202.00512, appendix D).

    Args:
        prediction_type: epsilon, v_prediction or sample.
        alpha: signal at each step, [S].
        sigma: noise level at each step, [S].

    Returns:
        Two arrays, float64 [S]; infinite where the sample has no signal to divide by.
    """
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if prediction_type == "epsilon":
            return 1 / alpha, -sigma / alpha
        if prediction_type == "v_prediction":
            return alpha, -sigma
        return np.zeros_like(alpha), np.ones_like(alpha)


def denoised_factors(prediction_type: str, signal: np.ndarray, noise_level: np.ndarray) -> dict[str, np.ndarray]:
    """Return `to_clean` of latents that are not of unit variance, such as Euler's, by name, float32 [S] each.

    Args:
        signal, noise_level: of the latents; the U-Net saw them divided by the length of both together.
    """
    size = np.hypot(np.asarray(signal, np.float64), noise_level)
    of_sample, of_prediction = to_clean(prediction_type, signal / size, noise_level / size)
    factors = {"denoised_sample": of_sample / size, "denoised_prediction": of_prediction}
    return {name: x.astype(np.float32) for name, x in factors.items()}


def to_noise(prediction_type: str, alpha: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors of the sample and of the prediction whose sum is the noise; arguments as in `to_clean`."""
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if prediction_type == "epsilon":
            return np.zeros_like(alpha), np.ones_like(alpha)
        if prediction_type == "v_prediction":
            return sigma, alpha
        return 1 / sigma, -alpha / sigma


def terms(target: str, *, estimates: np.ndarray | None = None, **sources: ArrayLike) -> dict[str, np.ndarray]:
    """Return the factors of a sum under the names that `Scheduler.step` gives them.

    Args:
        target: estimate_0, next or held.
        estimates: factors of the estimates by age, [S, ages].
        sources: factors [S] of sample, prediction, noise and held.
    """
    aged = {} if estimates is None else {f"estimate_{age}": column for age, column in enumerate(estimates.T)}
    return {f"{target}_from_{source}": np.asarray(values) for source, values in (sources | aged).items()}


def combine(*terms: tuple[ArrayLike, Array | None]) -> jax.Array:
    """Return the sum of coefficient * array in float32, from left to right, skipping arrays that are None."""
    products = [jnp.asarray(array, jnp.float32) * coefficient for coefficient, array in terms if array is not None]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total

"""Noise tables on the host: betas, cumulative alphas, training noise levels, and rules for choosing steps among them.

Everything is numpy in the precision that diffusers uses: float32 tables, float64 where it computes in Python or numpy.
Betas and alphas match diffusers' bit for bit, noise levels to an ulp, because torch's square root is not correctly
rounded on every processor.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Those of every scheduler. `alphas_cumprod` knows some more, which only a few have, as in diffusers."""


def linspace32(start: float, end: float, count: int) -> np.ndarray:
    """Return what `torch.linspace(start, end, count)` returns in float32, [count].

    torch counts up from the start in the first half and down from the end in the second, each with a fused
    multiply-add. float64 holds the product of two float32 exactly, so one rounding at the end is the fused one.
    """
    low, high = np.float32(start), np.float32(end)
    if count == 1:
        return np.asarray([low])
    step = np.float64((high - low) / np.float32(count - 1))
    index = np.arange(count)
    up, down = np.float64(low) + step * index, np.float64(high) - step * (count - 1 - index)
    return np.where(index < count // 2, up, down).astype(np.float32)


def log32(x: np.ndarray) -> np.ndarray:
    """Return the logarithm of float32 values, correctly rounded, unlike numpy's; log 0 is -inf."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(np.asarray(x, np.float64)).astype(np.float32)


def exp32(x: ArrayLike) -> np.ndarray:
    """Return the exponential of float32 values, correctly rounded."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.exp(np.asarray(x, np.float64)).astype(np.float32)


def expm1_32(x: np.ndarray) -> np.ndarray:
    """Return exp(x) - 1 of float32 values, correctly rounded."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.expm1(np.asarray(x, np.float64)).astype(np.float32)


def sigmoid32(x: np.ndarray) -> np.ndarray:
    """Return the logistic function of float32 values, correctly rounded."""
    return (1 / (1 + np.exp(-np.asarray(x, np.float64)))).astype(np.float32)


def _laplace(t: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(log_snr) / (1 + math.exp(log_snr)))


_SIGNAL_POWER = {
    "squaredcos_cap_v2": lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2,  # arXiv 2102.09672
    "exp": lambda t: math.exp(-12 * t),
    "laplace": _laplace,
}
"""Beta schedules that are given by the signal power left at each fraction of the training timesteps."""


def _betas_of(name: str, count: int) -> np.ndarray:
    """Return the betas of a schedule of `_SIGNAL_POWER`, capped at 0.999, [count]."""
    power = _SIGNAL_POWER[name]
    values = [min(1 - power((i + 1) / count) / power(i / count), 0.999) for i in range(count)]
    return np.asarray(values, np.float32)


def _zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Return betas rescaled so that the last step is pure noise (arXiv 2305.08891, algorithm 1), [T]."""
    root = np.sqrt(cumulative(1 - betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    bar = root**2
    alphas = np.concatenate([bar[:1], bar[1:] / bar[:-1]])
    return np.float32(1) - alphas


def cumulative(alphas: np.ndarray) -> np.ndarray:
    """Return what `torch.cumprod` returns on a CPU: accumulated in float64, stored in float32, [T]."""
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def alphas_cumprod(
    schedule: str,
    start: float,
    end: float,
    count: int,
    trained: tuple[float, ...] | None,
    zero_snr: bool,
) -> np.ndarray:
    """Return the signal power left at each training timestep, float32 [T], descending."""
    if trained is not None:
        betas = np.asarray(trained, np.float32)
    elif schedule == "linear":
        betas = linspace32(start, end, count)
    elif schedule == "scaled_linear":
        betas = linspace32(start**0.5, end**0.5, count) ** 2
    elif schedule == "sigmoid":
        betas = sigmoid32(linspace32(-6, 6, count)) * np.float32(end - start) + np.float32(start)
    else:
        betas = _betas_of(schedule, count)
    if zero_snr:
        betas = _zero_terminal_snr(betas)
    return cumulative(np.float32(1) - betas)


def sigmas_of(alphas: np.ndarray) -> np.ndarray:
    """Return the noise-to-signal ratio sqrt((1 - a) / a) of each training timestep, float32 [T], ascending."""
    with np.errstate(divide="ignore"):
        return np.sqrt((np.float32(1) - alphas) / alphas)


def lambdas_of(sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return alpha, sigma (alpha^2 + sigma^2 = 1) and log(alpha / sigma) of noise-to-signal ratios, in float32."""
    alpha = np.float32(1) / np.sqrt(sigmas**2 + np.float32(1))
    sigma = sigmas * alpha
    return alpha, sigma, log32(alpha) - log32(sigma)


def spaced_timesteps(
    spacing: str, steps: int, train: int, offset: int, *, drop_last: bool = False, span: int | None = None
) -> np.ndarray:
    """Return timesteps spread over training (arXiv 2305.08891, table 2), float64 [S], descending, `linspace` unrounded.

    Args:
        steps: number of denoising steps.
        train: number of training timesteps.
        offset: added to every timestep when spacing is `leading`.
        drop_last: place one more timestep and drop the lowest, as the multistep solvers do.
        span: spread over the first `span` training timesteps only (default: all).

    diffusers counts `trailing` timesteps with a float step and so makes one too many, a timestep of -1, for some
    numbers of steps (61, 103, 121, ... of 1000); that one is dropped here.
    """
    span = train if span is None else span
    points = steps + 1 if drop_last else steps
    if spacing == "linspace":
        rising = np.linspace(0, span - 1, points)
    elif spacing == "leading":
        rising = np.arange(points, dtype=np.float64) * (span // points)
    else:
        return np.arange(span, 0, -train / steps).round()[:steps] - 1
    falling = rising[::-1][:-1] if drop_last else rising[::-1]
    return falling + offset if spacing == "leading" else falling.copy()


def karras_sigmas(low: float, high: float, count: int, rho: float = 7.0, *, single: bool = False) -> np.ndarray:
    """Return the noise levels of Karras et al. (arXiv 2206.00364, equation 5), float64 [count], descending.

    Args:
        single: interpolate in float32, as diffusers' DPM-Solver for EDM does.
    """
    ramp = linspace32(0, 1, count) if single else np.linspace(0, 1, count)
    first, last = high ** (1 / rho), low ** (1 / rho)
    return (first + ramp * (last - first)).astype(np.float64) ** rho


def exponential_sigmas(low: float, high: float, count: int) -> np.ndarray:
    """Return noise levels equally spaced in the logarithm, float64 [count], descending."""
    return np.exp(np.linspace(math.log(high), math.log(low), count))


def beta_sigmas(low: float, high: float, count: int, alpha: float = 0.6, beta: float = 0.6) -> np.ndarray:
    """Return noise levels at quantiles of a beta distribution (arXiv 2407.12173), float64 [count], descending."""
    # scipy comes with JAX; only this schedule needs it
    from scipy.special import betaincinv

    return low + betaincinv(alpha, beta, 1 - np.linspace(0, 1, count)) * (high - low)


def timestep_of(sigma: np.ndarray, log_sigmas: np.ndarray) -> np.ndarray:
    """Return the fractional training timesteps of noise levels, linear in log sigma between table entries, [n].

    Args:
        sigma: noise levels, [n]; outside the table they give its first or last timestep.
        log_sigmas: logarithm of the training noise levels, [T], ascending.
    """
    log_sigma = np.log(np.maximum(sigma, 1e-10))[None]  # [1, n]
    below = log_sigma - log_sigmas[:, None] >= 0  # [T, n]
    low = np.cumsum(below, axis=0).argmax(axis=0).clip(max=len(log_sigmas) - 2)
    left, right = log_sigmas[low], log_sigmas[low + 1]
    weight = np.clip((left - log_sigma[0]) / (left - right), 0, 1)
    return (1 - weight) * low + weight * (low + 1)

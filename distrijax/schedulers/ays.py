"""Align Your Steps: timesteps that were optimised for few steps of SDXL (Sabour et al., arXiv 2404.14507)."""

import numpy as np

from distrijax.errors import DistrijaxError
from distrijax.schedulers import tables

NAME = "ays"
TIMESTEPS = (999, 845, 730, 587, 443, 310, 193, 116, 53, 13)
SIGMAS = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
"""The noise levels of these ten steps, and one where the last may end."""


def ays_timesteps(steps: int, train_sigmas: np.ndarray) -> list[int]:
    """Return the timesteps of a run: the published ones for ten steps, else interpolated in the logarithm of the level.

    Args:
        steps: number of steps.
        train_sigmas: noise-to-signal ratio at each training timestep, [T], ascending.
    """
    if steps == len(TIMESTEPS):
        return list(TIMESTEPS)
    places = np.linspace(0, len(SIGMAS) - 1, steps + 1)[:-1]
    levels = np.exp(np.interp(places, np.arange(len(SIGMAS)), np.log(SIGMAS)))
    chosen = tables.timestep_of(levels, np.log(train_sigmas)).round().astype(int)
    if np.any(np.diff(chosen) >= 0):
        raise DistrijaxError(f"timesteps {NAME!r} are for few steps: {steps} of them would share timesteps; take less")
    return chosen.tolist()

"""The checked arguments of `Scheduler.schedule`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distrijax.checks import numbers
from distrijax.errors import DistrijaxError


@dataclass(frozen=True)
class Request:
    """The arguments from which a scheduler builds its tables.

    Attributes:
        steps: number of steps of the whole run.
        timesteps: custom timesteps, float64 [steps], descending; or None.
        sigmas: custom noise levels, float64 [steps + 1], descending; or None.
        eta: noise added at each step, 0 for schedulers without it.
        start: index of the first step that runs. Steps before it leave no history for the ones after.
    """

    steps: int
    timesteps: np.ndarray | None
    sigmas: np.ndarray | None
    eta: float
    start: int


def custom_timesteps(name: str, values: Sequence[float], last: int, whole: bool) -> np.ndarray:
    """Return the caller's timesteps, checked, float64 [S]; `last` is the highest training timestep."""
    array = _falling(name, values, 1)
    if array[-1] < 0 or array[0] > last:
        raise DistrijaxError(f"{name} must lie in 0..{last}, got {list(values)}")
    if whole and np.any(array != np.round(array)):
        raise DistrijaxError(f"{name} must be whole numbers, got {list(values)}")
    return array


def custom_sigmas(name: str, values: Sequence[float]) -> np.ndarray:
    """Return the caller's noise levels and the one to end at, checked, float64 [S + 1]."""
    array = _falling(name, values, 2)
    if array[-1] < 0:
        raise DistrijaxError(f"{name} must not be negative, got {list(values)}")
    return array


def _falling(name: str, values: Sequence[float], least: int) -> np.ndarray:
    array = numbers(name, values, least)
    if np.any(np.diff(array) >= 0):
        raise DistrijaxError(f"{name} must fall from each value to the next, got {list(values)}")
    return array

"""Argument checks, whose errors name the value, the rule and, where there is one, the cure."""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from distrijax.errors import DistrijaxError

T = TypeVar("T")


def whole_number(name: str, value: object, least: int = 0, most: int | None = None) -> int:
    """Return `value` as an int if it is a whole number between `least` and `most`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        bounds = f"{least} or more" if most is None else f"from {least} to {most}"
        raise DistrijaxError(f"{name} is {value!r}; it must be a whole number, {bounds}")
    return int(value)  # type: ignore[call-overload]


def finite_number(name: str, value: object, least: float | None = None, most: float | None = None) -> float:
    """Return `value` as a float if it is a finite number between `least` and `most`."""
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not abs(value) <= np.finfo(float).max:  # type: ignore[arg-type]
        raise DistrijaxError(f"{name} is {value!r}; it must be a finite number")
    if (least is not None and value < least) or (most is not None and value > most):  # type: ignore[operator]
        bounds = f"{least:g} or more" if most is None else f"from {least if least is not None else '-inf'} to {most:g}"
        raise DistrijaxError(f"{name} is {value!r}; it must be a number {bounds}")
    return float(value)  # type: ignore[arg-type]


def one_of(name: str, value: T, choices: Iterable[T]) -> T:
    """Return `value` if it is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise DistrijaxError(f"{name} is {value!r}; it must be one of {', '.join(map(str, choices))}")
    return value


def true_or_false(name: str, value: object) -> bool:
    """Return `value` if it is a bool."""
    if not isinstance(value, bool | np.bool_):
        raise DistrijaxError(f"{name} is {value!r}; it must be True or False")
    return bool(value)

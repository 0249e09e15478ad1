"""Argument checks, whose errors name the value, the rule and, where there is one, the cure.

Scalars of NumPy, JAX and torch are numbers. Every check returns the value as Python's own type.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from distrijax.errors import DistrijaxError

T = TypeVar("T")

DTYPES = ("float32", "bfloat16", "float16")


def whole_number(name: str, value: object, least: int = 0, most: int | None = None) -> int:
    """Return `value` as an int if it is a whole number between `least` and `most`."""
    number = _scalar(value)
    if not isinstance(number, int) or number < least or (most is not None and number > most):
        bounds = f"{least} or more" if most is None else f"from {least} to {most}"
        raise DistrijaxError(f"{name} is {value!r}; it must be a whole number, {bounds}")
    return number


def finite_number(name: str, value: object, least: float | None = None, most: float | None = None) -> float:
    """Return `value` as a float if it is a finite number between `least` and `most`."""
    number = _scalar(value)
    if not isinstance(number, int | float) or not abs(number) <= sys.float_info.max:
        raise DistrijaxError(f"{name} is {value!r}; it must be a finite number")
    if (least is not None and number < least) or (most is not None and number > most):
        bounds = f"{least:g} or more" if most is None else f"from {least if least is not None else '-inf'} to {most:g}"
        raise DistrijaxError(f"{name} is {value!r}; it must be a number {bounds}")
    return float(number)


def array_of(name: str, value: Any, rule: str = "an array of finite numbers") -> np.ndarray:
    """Return an array, a tensor of torch or nested lists as a NumPy array of finite floats or whole numbers."""
    if hasattr(value, "detach"):  # a torch tensor, perhaps in bfloat16, on a GPU or with a gradient
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    try:
        array = np.asarray(value)
        valid = (
            any(jnp.issubdtype(array.dtype, kind) for kind in (np.floating, np.integer)) and np.isfinite(array).all()
        )
    except (TypeError, ValueError, NotImplementedError):  # no numbers, lists of different lengths, a JAX key
        valid = False
    if not valid:
        shown = repr(value) if len(repr(value)) < 80 else f"a {type(value).__name__}"
        raise DistrijaxError(f"{name} is {shown}; it must be {rule}")
    return array


def numbers(name: str, values: object, least: int = 1, most: int | None = None) -> np.ndarray:
    """Return a list or an array of `least` to `most` finite numbers as float64 [N]."""
    rule = "a pair of finite numbers" if least == most == 2 else f"a list of at least {least} finite numbers"
    array = array_of(name, values, rule)
    if array.ndim != 1 or len(array) < least or (most is not None and len(array) > most):
        raise DistrijaxError(f"{name} is {values!r}; it must be {rule}")
    return array.astype(np.float64)


def variant_of(name: str, value: object) -> None:
    """Check a suffix of weights' file names."""
    instance_of(name, value, (str, type(None)), 'a string, such as "fp16"')


def path_of(name: str, value: object) -> Path:
    """Return a path of the file system; `~` is the user's folder."""
    if not isinstance(value, str | os.PathLike):
        raise DistrijaxError(f"{name} is {value!r}; it must be a path or a string")
    return Path(value).expanduser()


def one_of(name: str, value: T, choices: Iterable[T]) -> T:
    """Return `value` if it is one of `choices`."""
    choices = tuple(choices)
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        raise DistrijaxError(f"{name} is {value!r}; it must be one of {', '.join(map(str, choices))}")
    return value


def true_or_false(name: str, value: object) -> bool:
    """Return `value` if it is a bool."""
    if not isinstance(value, bool | np.bool_):
        raise DistrijaxError(f"{name} is {value!r}; it must be True or False")
    return bool(value)


def instance_of(name: str, value: object, kinds: type | tuple[type, ...], rule: str) -> None:
    """Raise an error that states the rule unless `value` is an instance of one of `kinds`."""
    if not isinstance(value, kinds):
        raise DistrijaxError(f"{name} is {value!r}; it must be {rule}")


def known_dtype(name: str, value: Any) -> np.dtype:
    """Return a dtype that models compute in, from any name, type or dtype of it, torch's included."""
    try:
        if isinstance(value, jax.Array | np.ndarray):
            raise TypeError
        dtype = jnp.dtype(str(value).removeprefix("torch.") if str(value).startswith("torch.") else value)
        if value is not None and dtype.name in DTYPES:
            return dtype
    except TypeError:
        pass
    raise DistrijaxError(f"{name}: {value!r} is not supported; choose float32, bfloat16 or float16")


def _scalar(value: object) -> object:
    """Return a scalar of NumPy, JAX or torch as Python's own number, and None for a bool."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        try:
            value = value.item()
        except (TypeError, NotImplementedError):  # a value that is being traced, or a JAX key
            return None
    return None if isinstance(value, bool) else value

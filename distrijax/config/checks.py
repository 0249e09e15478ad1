"""Refusing what a configuration says that is not supported."""

from collections.abc import Mapping
from typing import Any

from distrijax.errors import DistrijaxError


def refuse(model: str, problems: list[str]) -> None:
    """One error for all problems, if there are any."""
    if problems:
        raise DistrijaxError(f"{model} config is not supported: " + "; ".join(problems))


def fixed_problems(json: Mapping[str, Any], fixed: Mapping[str, tuple], fields: set[str]) -> list[str]:
    """What is wrong with attributes that are neither among `fields` nor have one of the values that `fixed` allows."""
    problems = []
    for name, value in json.items():
        if name in fixed:
            if value not in fixed[name]:
                allowed = " or ".join(repr(v) for v in fixed[name])
                problems.append(f"{name}={value!r} (supported: {allowed})")
        elif name not in fields and not name.startswith("_"):
            problems.append(f"unknown attribute {name}={value!r}")
    return problems


def per_block(value: Any, blocks: int) -> tuple:
    """A value for each block, from one value for all of them or a list."""
    return tuple(value) if isinstance(value, list | tuple) else (value,) * blocks

"""Validation of configurations: collect every problem, then raise one error that lists them all."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from distrijax.errors import DistrijaxError

Json: TypeAlias = Mapping[str, Any]  # the contents of a JSON object


def refuse(model: str, problems: list[str]) -> None:
    """Raise one DistrijaxError that lists all problems, if there are any."""
    if problems:
        raise DistrijaxError(f"{model} config is not supported: " + "; ".join(problems))


def attribute_problems(
    json: Json, fixed: Mapping[str, tuple], known: Iterable[str], class_name: str | None = None
) -> list[str]:
    """Return the problems with the attributes of a `config.json`.

    Args:
        json: the contents of the file.
        fixed: attributes with their supported values.
        known: attributes that may have any value, as may names that begin with "_".
        class_name: the required `_class_name`, if the file has one.
    """
    problems = []
    if class_name is not None:
        fixed = {**fixed, "_class_name": (class_name,)}
    for name, value in json.items():
        if name in fixed:
            if value not in fixed[name]:
                allowed = " or ".join(repr(v) for v in fixed[name])
                problems.append(f"{name}={value!r} (supported: {allowed})")
        elif name not in known and not name.startswith("_"):
            problems.append(f"unknown attribute {name}={value!r}")
    return problems


def per_block(value: object, blocks: int) -> tuple:
    """Return one value per block, from a list or from a single value for all blocks."""
    return tuple(value) if isinstance(value, list | tuple) else (value,) * blocks

"""One way to refuse a configuration: collect every problem, then raise one error that names them all."""

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
    """Return what is wrong with the attributes of a `config.json`.

    Args:
        json: the contents of the file.
        fixed: attributes with the values that are supported.
        known: attributes that may have any value. Names that begin with "_" are known too.
        class_name: what `_class_name` must be, where the file has it.
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
    """Return a value for each block, from one value for all of them or a list."""
    return tuple(value) if isinstance(value, list | tuple) else (value,) * blocks

"""What the entries of a configuration file may be: a table of rules for each kind of file, and one reader for all.

A rule takes an entry's name and value, and returns the value or raises a DistrijaxError that names both.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from distrijax.checks import finite_number, true_or_false, whole_number
from distrijax.errors import DistrijaxError

logger = logging.getLogger(__name__)

Json: TypeAlias = Mapping[str, Any]  # the contents of a JSON object
Rule: TypeAlias = Callable[[str, object], Any]


def whole(least: int = 1, most: int = 1 << 16) -> Rule:
    """A whole number. The upper bound is beyond any model: building one of ten million layers would seem to hang."""
    return lambda name, value: whole_number(name, value, least, most)


def number(least: float | None = None, most: float | None = None) -> Rule:
    """A finite number."""
    return lambda name, value: finite_number(name, value, least, most)


def even(name: str, value: object) -> int:
    """The size of a sinusoidal embedding: half of it sines, half cosines, of at least two frequencies."""
    size = whole_number(name, value, 4, 1 << 16)
    if size % 2:
        raise DistrijaxError(f"{name} is {value!r}; it must be even")
    return size


def flag(name: str, value: object) -> bool:
    """True or false; null is false, as in Python."""
    return value is not None and true_or_false(name, value)


def choice(*values: object) -> Rule:
    """One of some values; the only ones that are supported, or the only ones that there are."""

    def rule(name: str, value: object) -> object:
        plain = value is None or isinstance(value, str | int | float | list | tuple | dict)  # not an array
        if not plain or value not in values:
            raise DistrijaxError(
                f"{name} is {value!r}, which is not supported; it must be {' or '.join(map(repr, values))}"
            )
        return value

    return rule


def optional(rule: Rule) -> Rule:
    """What `rule` allows, or null."""
    return lambda name, value: None if value is None else rule(name, value)


def several(rule: Rule, least: int = 1, most: int = 16, *, or_one: bool = False) -> Rule:
    """A list of what `rule` allows, such as one for each block, as a tuple; with `or_one`, or a single one."""

    def each(name: str, value: object) -> object:
        if not isinstance(value, list | tuple):
            if or_one:
                return rule(name, value)
            raise DistrijaxError(f"{name} is {value!r}; it must be a list")
        if not least <= len(value) <= most:
            raise DistrijaxError(f"{name} has {len(value)} entries; it must have {least} to {most}")
        return tuple(rule(f"{name}[{place}]", entry) for place, entry in enumerate(value))

    return each


def only(value: object, names: str) -> dict[str, Rule]:
    """Return rules for `names` that allow nothing but `value` (null is false), because nothing else is supported."""
    return dict.fromkeys(names.split(), choice(value, None) if value is False else choice(value))


def anything(name: str, value: object) -> object:
    """What does not matter: the entry does not change what is computed here."""
    return value


def read(model: str, json: object, rules: Mapping[str, Rule], required: Iterable[str] = ()) -> dict[str, Any]:
    """Return the entries of a configuration that have a rule, checked; raise one error that lists all problems.

    The others are ignored and logged, as diffusers and transformers do with what their classes do not take: entries of
    trainers, of newer versions, of other classes.
    """
    values = check(model, json, rules, required)
    assert isinstance(json, Mapping)
    unknown = {name: json[name] for name in sorted(json) if name not in rules and not name.startswith("_")}
    log_ignored(f"{model} config", unknown)
    return values


def check(model: str, json: object, rules: Mapping[str, Rule], required: Iterable[str] = ()) -> dict[str, Any]:
    """Return the entries that have a rule, checked, like `read`; others are none of its business."""
    if not isinstance(json, Mapping):
        raise DistrijaxError(f"{model}: the configuration must be a JSON object, not {type(json).__name__}")
    problems = [f"{name} is missing" for name in required if name not in json]
    values = {}
    for name in rules.keys() & json.keys():
        try:
            values[name] = rules[name](name, json[name])
        except DistrijaxError as error:
            problems.append(str(error))
    refuse(model, problems)
    return values


def log_ignored(what: str, entries: Json) -> None:
    """Name the entries that are ignored: aloud if they are set to something, quietly if they are null or false."""
    for level, loud in ((logging.WARNING, True), (logging.INFO, False)):
        names = [
            f"{name}={value!r}" for name, value in entries.items() if loud == (value is not None and value is not False)
        ]
        if names:
            logger.log(level, "%s: ignored %s, which it does not have", what, ", ".join(names))


def refuse(model: str, problems: Iterable[str]) -> None:
    """Raise one DistrijaxError that lists all problems, if there are any."""
    if listed := ". ".join(sorted(problems)):
        raise DistrijaxError(f"{model} config is not supported: {listed}")


def per_block(value: object, blocks: int) -> tuple:
    """Return one value per block, from a tuple or from a single value for all blocks."""
    return value if isinstance(value, tuple) else (value,) * blocks


SIZE = several(whole(1, 1 << 14), 2, 2, or_one=True)  # the side of a square, or height and width


def indivisible(name: str, widths: Iterable[int], what: str, parts: int) -> list[str]:
    """Return the problem, if there is one, that some of `widths` cannot be divided into `parts`."""
    wrong = [width for width in widths if width % parts]
    return [f"{name} {parts} does not divide {what} {wrong[0]}"] if wrong else []

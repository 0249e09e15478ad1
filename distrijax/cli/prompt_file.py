"""A file of prompts: what it may say, and the pictures that it asks for."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from distrijax.checks import whole_number
from distrijax.cli.settings import Settings
from distrijax.errors import DistrijaxError
from distrijax.text.prompt import PromptInputs

TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
NUMBERS = ("steps", "guidance_scale", "guidance_rescale")
"""Settings that all pictures of a batch share. One compiled program takes any of these, and any texts and seeds."""

SWITCHES = {"guidance_scale": 1, "guidance_rescale": 0}
"""At or below these values there is no guidance or no rescaling, which other programs do."""

FIRST_SEED = 0
"""The seed of the first picture if none is given: a run that is continued has to find the same one."""


class Request(NamedTuple):
    """A picture that the file asks for.

    Attributes:
        line: its line in the file, counted from 1.
        name: of its own file.
        settings: with its prompt and its seed.
    """

    line: int
    name: str
    settings: Settings


def read_requests(path: Path, settings: Settings, count: int, check: Callable[[Settings], None]) -> list[Request]:
    """Return the pictures that a file of prompts asks for, in its order.

    Args:
        path: a text file with a prompt on each line, or a `.jsonl` file with an object on each, which has a `prompt`
            and may have other settings of `TEXTS` and `NUMBERS`, and a `seed`.
        settings: what a line does not say.
        count: pictures of each line, whose seeds follow each other.
        check: raises an error if a value of the settings is one that no model takes.

    Raises:
        DistrijaxError: a line cannot be used; the message has its number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8"
        raise DistrijaxError(f"--prompts: {path} cannot be read ({reason})") from None
    seed = FIRST_SEED if settings.seed is None else settings.seed
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    digits = max(4, len(str(len(lines))))
    requests = []
    for position, (number, line) in enumerate(numbered):
        try:
            values: dict[str, object] = _values(line) if path.suffix.lower() == ".jsonl" else {"prompt": line.strip()}
            made = settings.updated({"seed": seed + position * count, **values})
            check(made)
            _check(made, settings)
        except DistrijaxError as error:
            raise DistrijaxError(f"{path}, line {number}: {error}") from None
        for i in range(count):
            name = f"{number:0{digits}d}" + (f"-{i + 1}" if count > 1 else "")
            assert made.seed is not None
            requests.append(Request(number, f"{name}.png", dataclasses.replace(made, seed=made.seed + i)))
    if not requests:
        raise DistrijaxError(f"--prompts: {path} has no prompts; write one on each line")
    return requests


def _values(line: str) -> dict[str, object]:
    """Return the settings of a line of JSON."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DistrijaxError(f"is not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise DistrijaxError(
            f'is {line.strip()[:40]!r}; it must be a JSON object, such as {{"prompt": "a red circle"}}'
        )
    allowed = (*TEXTS, *NUMBERS, "seed")
    for name in values:
        if name not in allowed:
            known = name in Settings.__dataclass_fields__
            reason = "which is the same for the whole file: give it as an option" if known else "which is unknown"
            raise DistrijaxError(f"has {name!r}, {reason}; a line may have {', '.join(allowed)}")
    if not isinstance(values.get("prompt"), str):
        raise DistrijaxError("has no prompt, or one that is no text")
    if "seed" in values:
        whole_number("seed", values["seed"], -(2**63), 2**64 - 1)
    return {name: value for name, value in values.items() if value is not None}


def _check(made: Settings, settings: Settings) -> None:
    """Refuse what would need other programs than the options do, and prompts that cannot be parsed."""
    PromptInputs(**{name: getattr(made, name) for name in TEXTS}, prompt_syntax=made.prompt_syntax)
    for name, limit in SWITCHES.items():
        value, of_options = getattr(made, name), getattr(settings, name)
        if (value > limit) != (of_options > limit):
            raise DistrijaxError(
                f"{name} is {value:g}, but that of the options is {of_options:g}; values above {limit} and others have "
                "different programs, so they need files of their own"
            )


def batches(requests: list[Request], size: int, chunks: Callable[[Request], int]) -> list[list[Request]]:
    """Return the requests in batches that one call can make: with equal `NUMBERS`, and prompts of equal length.

    Args:
        chunks: the number of chunks of a picture's prompts. Filled up to the length of others, they would give another
            picture.
    """
    groups: dict[object, list[Request]] = {}
    for request in requests:
        settings = request.settings
        kind = [getattr(settings, name) for name in NUMBERS], settings.negative_prompt is None, chunks(request)
        groups.setdefault(repr(kind), []).append(request)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def arguments(batch: list[Request], size: int) -> dict[str, object]:
    """Return the arguments of a call that makes the pictures of a batch, and the last one again up to `size`."""
    every = [request.settings for request in [*batch, *[batch[-1]] * (size - len(batch))]]
    first = every[0]
    texts: dict[str, object] = {"prompt": [each.prompt for each in every]}
    texts["prompt_2"] = [each.prompt_2 or each.prompt for each in every]
    if first.negative_prompt is not None:
        texts["negative_prompt"] = [each.negative_prompt for each in every]
    texts["negative_prompt_2"] = [each.negative_prompt_2 or each.negative_prompt or "" for each in every]
    numbers = {"guidance_scale": first.guidance_scale, "guidance_rescale": first.guidance_rescale}
    return texts | numbers | {"num_inference_steps": first.steps, "seed": [each.seed for each in every]}

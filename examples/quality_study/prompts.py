"""The prompts of a study: some of the demo world's, or those of a file."""

import dataclasses
import hashlib
import re
from pathlib import Path

from demo_world.captions import held_out_prompts

from distrijax import DistrijaxError


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts, each with the seed of its picture.

    Attributes:
        name: what they are, for the report; other prompts have other names.
        judged: whether the judge of the demo world can tell what the pictures should show.
    """

    texts: list[str]
    seeds: list[int]
    name: str
    judged: bool

    def __len__(self) -> int:
        return len(self.texts)


def read_prompts(given: str) -> Prompts:
    """Return the prompts that `--prompts` asks for.

    Args:
        given: a number, for the first captions of the demo world that training never saw; two, as in 8:40, for those
            from the first on and before the second; or a text file with a prompt on each line.

    Raises:
        DistrijaxError: there are none.
    """
    if match := re.fullmatch(r"(?:(\d+):)?(\d+)", given):
        first, stop = int(match[1] or 0), int(match[2])
        if first >= stop:
            raise DistrijaxError(f"--prompts is {given}, which is none; it must be 1 or more, or A:B with A below B")
        return Prompts(
            held_out_prompts(stop)[first:], list(range(first, stop)), f"{first} to {stop - 1} of the demo world", True
        )
    if re.fullmatch(r"[-+.:\d]+", given):
        raise DistrijaxError(f"--prompts is {given}; it must be a whole number, two as in 8:40, or a file")
    path = Path(given)
    if path.suffix.lower() in (".json", ".jsonl"):
        raise DistrijaxError(f"--prompts: {path} must be a text file with a prompt on each line, not JSON")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DistrijaxError(f"--prompts: {path} cannot be read ({reason}); give a number or a text file") from None
    texts = [line.strip() for line in content.splitlines() if line.strip()]
    if not texts:
        raise DistrijaxError(f"--prompts: {path} has no prompts; write one on each line")
    if "\0" in content:
        raise DistrijaxError(f"--prompts: {path} is not text")
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]
    return Prompts(texts, list(range(len(texts))), f"{len(texts)} of {path.name} ({digest})", False)

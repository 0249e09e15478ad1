"""Names of the files that pictures are written to, chosen before anything is loaded."""

import re
from itertools import count
from pathlib import Path

from distrijax.cli.options import check_output
from distrijax.errors import DistrijaxError
from distrijax.runtime import processes


def choose_targets(output: Path | None, prompts: list[str], images: int, *, overwrite: bool) -> list[Path]:
    """Return a path for each of the `images` pictures of each prompt. All processes must call this.

    Only the first process writes, so the others get an empty list.

    Raises:
        DistrijaxError: the first process cannot write there. All processes raise it: the others would wait for it.
    """
    targets, problem = [], None
    if processes.is_first():
        try:
            targets = _targets(output, prompts, images, overwrite)
        except DistrijaxError as error:
            problem = error
    if not processes.same_everywhere(problem is None):
        raise problem or DistrijaxError("the first process cannot write its pictures; its own message says why")
    return targets


def _targets(output: Path | None, prompts: list[str], images: int, overwrite: bool) -> list[Path]:
    if output is None:
        return _free_names([_slug(prompt) for prompt in prompts for _ in range(images)])
    if output.suffix.lower() != ".png":
        raise DistrijaxError(f"--output is {str(output)!r}; it must end in .png")
    check_output("--output", output)
    total = len(prompts) * images
    paths = [output] if total == 1 else [output.with_stem(f"{output.stem}-{i + 1}") for i in range(total)]
    present = [path for path in paths if path.exists()]
    if present and not overwrite:
        raise DistrijaxError(f"{present[0]} exists; choose another --output, or add --overwrite")
    return paths


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].rstrip("-") or "picture"


def _free_names(names: list[str]) -> list[Path]:
    """Return `name.png`, or the first free one of `name-2.png`, `name-3.png`, ..., for each name."""
    paths: list[Path] = []
    for name in names:
        candidates = (Path(f"{name}.png" if number == 1 else f"{name}-{number}.png") for number in count(1))
        paths.append(next(path for path in candidates if path not in paths and not path.exists()))
    return paths

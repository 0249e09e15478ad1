"""The files that pictures are written to: checked before anything is loaded, and never overwritten by accident."""

import dataclasses
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

from distrijax.errors import DistrijaxError
from distrijax.runtime import processes
from distrijax.runtime.agreement import same_everywhere

T = TypeVar("T")

LONGEST_NAME = 120
"""Bytes of a name that is made from a prompt. File systems allow 255, and a number or two are added."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A file to write.

    Attributes:
        path: the name to write to.
        numbered: if the name is taken, take the first free one of name-2, name-3, ...
        overwrite: replace what is there.
    """

    path: Path
    numbered: bool = False
    overwrite: bool = False

    def write(self, data: bytes) -> Path:
        """Write the file, whole or not at all, and return its path.

        A name is taken when the file is created, so that two processes with one prompt write two files. Data that
        cannot be written there are kept in the temporary folder, and a DistrijaxError says so.
        """
        partial = _partial(self.path)
        try:
            partial.write_bytes(data)
            path = self.path if self.overwrite else self._claim()
            partial.replace(path)
            return path
        except OSError as error:
            taken = isinstance(error, FileExistsError)
            reason = "exists by now" if taken else f"cannot be written ({error.strerror or error})"
            raise DistrijaxError(f"{self.path} {reason}; {_keep(data, self.path)}") from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _claim(self) -> Path:
        """Create an empty file under the first free name; of two processes, only one can."""
        for path in self._names():
            with suppress(FileExistsError), path.open("xb"):
                return path
        raise FileExistsError

    def _names(self) -> Iterator[Path]:
        yield self.path
        if self.numbered:
            yield from (self.path.with_stem(f"{self.path.stem}-{number}") for number in count(2))


def choose_targets(output: Path | None, prompts: list[str], images: int, *, overwrite: bool) -> list[Target]:
    """Return a target for each of the `images` pictures of each prompt, in the first process, which writes them."""
    return by_the_first(lambda: _targets(output, prompts, images, overwrite)) or []


def by_the_first(prepare: Callable[[], T]) -> T | None:
    """Return what `prepare` returns in the first process, which writes the files, and None in the others.

    All processes must call this, and raise an error if the first one cannot write: they would wait for it.
    """
    prepared, problem = None, None
    if processes.is_first():
        try:
            prepared = prepare()
        except DistrijaxError as error:
            problem = error
    if not same_everywhere(problem is None, "looking for a place to write to"):
        raise problem or DistrijaxError("the first process cannot write its pictures; its own message says why")
    return prepared


def check_output(option: str, path: Path) -> None:
    """Raise DistrijaxError if no file can be written to `path`."""
    if not path.parent.is_dir():
        raise DistrijaxError(f"{option}: there is no folder {path.parent}; make it first")
    _probe(option, path)
    if path.is_dir():
        raise DistrijaxError(f"{option}: {path} is a folder; name a file in it")


def _probe(option: str, path: Path) -> None:
    """Write a file beside `path` and remove it: the folder may be read-only, the disk full or the name too long."""
    partial = _partial(path)
    try:
        partial.write_bytes(bytes(1 << 20))  # about as much as a picture
    except OSError as error:
        raise DistrijaxError(f"{option}: {path} cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _targets(output: Path | None, prompts: list[str], images: int, overwrite: bool) -> list[Target]:
    if output is None:
        names = [Path(f"{_slug(prompt)}.png") for prompt in prompts for _ in range(images)]
        _probe("without --output", names[0])
        return [Target(name, numbered=True) for name in names]
    if output.suffix.lower() != ".png":
        raise DistrijaxError(f"--output is {str(output)!r}; it must end in .png")
    total = len(prompts) * images
    paths = [output] if total == 1 else [output.with_stem(f"{output.stem}-{i + 1}") for i in range(total)]
    for path in paths:
        check_output("--output", path)
        if path.exists() and not overwrite:
            raise DistrijaxError(f"{path} exists; choose another --output, or add --overwrite")
    return [Target(path, overwrite=overwrite) for path in paths]


def _slug(prompt: str) -> str:
    """Return a file name of the prompt's letters, in any script, and digits."""
    text = unicodedata.normalize("NFC", prompt.lower())
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else "-" for c in text)
    words = re.sub("-+", "-", kept).encode()[:LONGEST_NAME].decode(errors="ignore")
    return words[:60].strip("-") or "picture"


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _keep(data: bytes, path: Path) -> str:
    """Write the data to the temporary folder and say where they are."""
    try:
        handle, name = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=path.suffix)
        with open(handle, "wb") as file:
            file.write(data)
        return f"the picture is kept as {name}"
    except OSError as error:
        return f"nor can the temporary folder be written ({error.strerror or error}), so the picture is lost"

"""A folder of pictures with a list of what is in it, that a run which was ended can be continued in."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from distrijax.cli.pictures import png, read_settings
from distrijax.cli.prompt_file import Request
from distrijax.cli.targets import Target, check_output
from distrijax.errors import DistrijaxError
from distrijax.parallel.policies import AUTO

MANIFEST = "manifest.jsonl"
_OF_THE_RUN = ("data", "emulate")
"""Settings that may differ between the runs that fill a folder: the pictures are the same."""


class PictureFolder:
    """The folder, in the process that writes it.

    Every file appears when it is complete. A picture is made once it is in the manifest, or carries its own settings.

    Args:
        path: is created if it is absent.
        overwrite: replace pictures of the same names that were made with other settings.
    """

    def __init__(self, path: Path, requests: Sequence[Request], *, overwrite: bool):
        self.path, self._order = path, {request.name: i for i, request in enumerate(requests)}
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DistrijaxError(f"--output: {path} cannot be made ({error.strerror or error})") from error
        check_output("--output", path / MANIFEST)
        for partial in path.glob(".*.partial"):  # of a run that was killed
            partial.unlink()
        self._made = self._read()
        self.done = [self._is_done(request, overwrite) for request in requests]

    def add(self, requests: Sequence[Request], pictures: Sequence[Image.Image], mode: str) -> list[Path]:
        """Write pictures that were made in this mode, then the manifest, and return the pictures' paths."""
        paths = []
        for request, picture in zip(requests, pictures, strict=True):
            height, width = picture.height, picture.width
            settings = dataclasses.replace(request.settings, height=height, width=width, mode=mode)
            paths.append(Target(self.path / request.name, overwrite=True).write(png(picture, settings)))
            self._made[request.name] = {"line": request.line} | dataclasses.asdict(settings)
        self.write_manifest()
        return paths

    def write_manifest(self) -> None:
        """Write a line of JSON for each picture that is made, in the order of the file of prompts."""
        names = sorted(self._made, key=lambda name: (self._order.get(name, len(self._order)), name))
        lines = [json.dumps({"file": name} | self._made[name], ensure_ascii=False) for name in names]
        partial = self.path / f".{MANIFEST}.partial"
        with partial.open("w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / MANIFEST)

    def _read(self) -> dict[str, dict[str, Any]]:
        """Return what the manifest says of each file that is there."""
        path, made = self.path / MANIFEST, {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], 1):
            try:
                values = json.loads(line)
                name = values.pop("file")
            except (ValueError, AttributeError, KeyError, TypeError):
                raise DistrijaxError(
                    f"{path}, line {number}: is not from this program; choose another --output, or remove the file"
                ) from None
            if (self.path / str(name)).is_file():
                made[str(name)] = values
        return made

    def _is_done(self, request: Request, overwrite: bool) -> bool:
        path = self.path / request.name
        if request.name not in self._made and path.is_file():  # a run was ended between a picture and the manifest
            try:
                self._made[request.name] = {"line": request.line} | dataclasses.asdict(read_settings(path))
            except DistrijaxError:
                self._made[request.name] = {}
        made = self._made.get(request.name)
        if made is None:
            return False
        wanted = dataclasses.asdict(request.settings)
        different = [name for name, value in wanted.items() if not _same(name, value, made.get(name))]
        if different and not overwrite:
            raise DistrijaxError(
                f"{path} exists, but was made with another {' and '.join(different[:3])}; choose another --output, or "
                "add --overwrite"
            )
        return not different


def _same(name: str, wanted: object, made: object) -> bool:
    chosen_later = name in ("height", "width") and wanted is None  # by the model
    chosen_later |= name == "mode" and wanted == AUTO  # as `mode_chosen_by` says
    return name in _OF_THE_RUN or chosen_later or wanted == made

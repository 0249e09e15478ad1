"""Files and folders, read with clear errors and written so that they appear only when they are complete."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distrijax.checks import true_or_false
from distrijax.errors import DistrijaxError

MANIFEST = "distrijax.json"
MODEL_INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise DistrijaxError if the file is absent, not JSON or not an object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DistrijaxError(f"{path}: there is no such file") from error
    except OSError as error:
        raise DistrijaxError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DistrijaxError(f"{path}: is not valid JSON ({error}); download or copy it again") from error
    if not isinstance(values, dict):
        raise DistrijaxError(f"{path}: must hold a JSON object, not {type(values).__name__}")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object as diffusers formats it."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def appearing(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside `target` that becomes `target` when the block succeeds, and is removed otherwise.

    Files are flushed to the disk before the rename, so that a power cut cannot leave half a checkpoint under the name.
    A killed process leaves the hidden folder behind. The next one replaces it if `overwrite`, and otherwise raises an
    error, since another process may be writing it.
    """
    target, overwrite = target.resolve(), true_or_false("overwrite", overwrite)
    partial, old = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "replaced"))
    _check_target(target, partial, overwrite)
    try:
        if overwrite:
            shutil.rmtree(partial, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            yield partial
            _flush(partial)
            if target.is_dir() and any(target.iterdir()):
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
            partial.rename(target)
            _fsync(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DistrijaxError(f"{target}: cannot be written: {error.strerror or error}") from error


def _check_target(target: Path, partial: Path, overwrite: bool) -> None:
    if partial.exists() and not overwrite:
        raise DistrijaxError(
            f"{partial}: is being written by another process, or was left by one that was killed; "
            "if none is running, remove it or set overwrite"
        )
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise DistrijaxError(f"{target}: already exists; choose another name, or set overwrite")
    if not any((target / name).is_file() for name in (MANIFEST, MODEL_INDEX)):
        raise DistrijaxError(f"{target}: is not a checkpoint, and is not overwritten; remove it or choose another name")


def _flush(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in (*names, ""):
            _fsync(Path(root, name))


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

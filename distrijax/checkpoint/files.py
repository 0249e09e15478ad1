"""Files and folders: read with clear errors, and made so that they appear only when they are complete."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distrijax.errors import DistrijaxError

MANIFEST = "distrijax.json"
MODEL_INDEX = "model_index.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DistrijaxError if it is not there, not JSON or not an object."""
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


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def appearing(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when the block ends well, and vanishes when it does not.

    It stands beside the target, hidden and locked; what a killed process left there is removed by the next one. Files
    are flushed to the disk before the rename, so that not even a power cut leaves half a checkpoint under the name.
    """
    _check_target(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        partial = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    except OSError as error:
        raise DistrijaxError(f"{target}: cannot be written: {error.strerror or error}") from error
    lock = os.open(partial, os.O_RDONLY)
    try:
        with _ending_cleanly():
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.chmod(partial, 0o777 & ~_umask())  # mkdtemp's folders are their owner's alone
            yield partial
            _flush(partial)
            _replace(partial, target, overwrite)
    except OSError as error:
        raise DistrijaxError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not overwrite:
        raise DistrijaxError(f"{target}: exists already; choose another name, or say overwrite")
    if not any((target / name).is_file() for name in (MANIFEST, MODEL_INDEX)):
        raise DistrijaxError(f"{target}: is not a checkpoint, and is not overwritten; remove it or choose another name")


def _sweep(target: Path) -> None:
    """Remove what killed processes left: the partial folders that nobody has locked."""
    for orphan in target.parent.glob(f"{_prefix(target).replace('[', '[[]')}*"):
        with contextlib.suppress(OSError):
            lock = os.open(orphan, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(orphan)
            finally:
                os.close(lock)


@contextlib.contextmanager
def _ending_cleanly() -> Iterator[None]:
    """While this lasts, SIGTERM (which batch systems send) unwinds the stack instead of ending the process at once."""

    def unwind(signum: int, frame: Any) -> None:
        raise SystemExit(128 + signum)

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _flush(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in (*names, ""):
            handle = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _replace(partial: Path, target: Path, overwrite: bool) -> None:
    old = None
    if overwrite and target.is_dir() and any(target.iterdir()):
        # Not a partial folder's name: should the process die between the two renames, the old one must not be swept.
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.replaced-", dir=target.parent)) / target.name
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old is not None:
            old.rename(target)
        raise
    finally:
        if old is not None:
            shutil.rmtree(old.parent, ignore_errors=True)
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask

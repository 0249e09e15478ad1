"""Repair of JAX's cache of compiled programs on disk.

JAX never replaces an entry that it cannot read, such as the empty file that a full disk leaves, and each start compiles
again, 70 seconds for SDXL. Here such an entry is replaced, and what is wrong is said once.
"""

import functools
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax._src.compilation_cache_interface import CacheInterface


@functools.cache
def repair_cache() -> None:
    """Let broken entries of JAX's cache be replaced. Call it before the first compilation."""
    try:
        from jax._src import compilation_cache

        get_file_cache = compilation_cache.get_file_cache
        decompress = compilation_cache.decompress_executable
    except (ImportError, AttributeError):  # a JAX later than 0.12, whose cache is left as it is
        return

    def get_repaired(path: str) -> "tuple[RepairedCache, str] | None":
        try:
            found = get_file_cache(path)
        except OSError as error:
            complain(path, error)
            return None
        return None if found is None else (RepairedCache(found[0], path, decompress), path)

    compilation_cache.get_file_cache = get_repaired  # type: ignore[assignment]


class RepairedCache:
    """JAX's cache, without broken entries and without errors.

    Args:
        base: JAX's cache.
        decompress: raises an error if what an entry holds is damaged.
    """

    def __init__(self, base: "CacheInterface", path: str, decompress: Callable[[bytes], bytes]):
        self._base, self._path, self._decompress = base, path, decompress

    def get(self, key: str) -> bytes | None:
        """Return an entry, or None if it is absent or broken."""
        try:
            entry = self._base.get(key)
        except OSError as error:
            complain(self._path, error)
            return None
        if entry is None:
            return None
        with suppress(Exception):  # zlib's error or zstandard's, whichever JAX uses
            if self._decompress(entry):
                return entry
        warn_once(f"compiled programs in {self._path} are damaged; they are compiled again and replaced")
        with suppress(OSError):
            self._file(key).unlink(missing_ok=True)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Write an entry in place of the one that is there: it could not be used."""
        file = self._file(key)
        try:
            file.unlink(missing_ok=True)
            self._base.put(key, value)
        except OSError as error:
            complain(self._path, error)
            with suppress(OSError):
                file.unlink(missing_ok=True)  # what a full disk took of it

    def _file(self, key: str) -> Path:
        return Path(self._path, f"{key}-cache")


def complain(path: str, error: OSError) -> None:
    """Say that the cache cannot be used."""
    warn_once(
        f"compiled programs cannot be kept in {path} ({error.strerror or error}), so each start compiles again; choose "
        "another folder with JAX_COMPILATION_CACHE_DIR"
    )


@functools.cache
def warn_once(message: str) -> None:
    """Warn of what is wrong with many programs alike."""
    warnings.warn(message, stacklevel=3)

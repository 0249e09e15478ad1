"""What the kernels of a program cost, measured on the user's own GPUs, and kept beside the compiled programs.

JAX's profile-guided latency estimation, for programs compiled ahead of time: one call is traced, and from the next
process on XLA places the transfers by what it took. (JAX's own switch, `jax_enable_pgle`, sees only `jax.jit`.)
"""

import hashlib
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from distrijax.errors import DistrijaxError

UNIT = 1000
"""Of the costs that XLA is told, a microsecond. It counts 1 for what it is not told, such as bitcasts, which take no
time: in microseconds those beside one transfer of SDXL on eight H100s are 13 of 98, and each comes 11 µs too late."""


def tracer() -> Any:
    """JAX's profiler of one call."""
    try:
        from jax._src.profiler import PGLEProfiler
    except ImportError:
        raise DistrijaxError(f"jax {jax.__version__} has no profile-guided latency estimation; leave it out") from None
    return PGLEProfiler(retries=1, percentile=50)


class Profiles:
    """Profiles on disk, by program.

    Args:
        folder: where they are; None to keep none.
        measure: trace the second call of every program that has none yet. The first still sets things up.
    """

    def __init__(self, folder: Path | None, *, measure: bool = False):
        if measure and folder is None:
            raise DistrijaxError("a profile needs a folder to be kept in: set JAX_COMPILATION_CACHE_DIR to one")
        self.folder, self.measure = folder, measure
        self._calls: dict[str, int] = {}

    def key(self, *args: Any, **static: Any) -> str:
        """Of a program: the same in every process that would compile the same for the same devices."""
        shapes = [(jax.tree_util.keystr(path), str(jax.typeof(x))) for path, x in jax.tree.leaves_with_path(args)]
        kinds = sorted({device.device_kind for device in jax.devices()})
        said = repr((jax.__version__, kinds, shapes, sorted(static.items())))
        return hashlib.sha256(said.encode()).hexdigest()[:32]

    def read(self, key: str) -> bytes | None:
        """The profile of a program, if there is one."""
        path = self._path(key)
        return path.read_bytes() if path is not None and path.is_file() else None

    def call(self, key: str, program: Callable[..., Any], *args: Any) -> Any:
        """`program(*args)`, traced if that is wanted and has not been done."""
        self._calls[key] = self._calls.get(key, 0) + 1
        path = self._path(key)
        if not self.measure or path is None or self._calls[key] != 2 or path.exists():
            return program(*args)
        profiler = tracer()
        with profiler.trace(profiler):
            result = jax.block_until_ready(program(*args))
        found = profiler.consume_fdo_profile()
        if found:
            _write(path, in_units(found))
        return result

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.profile"


def in_units(profile: bytes) -> bytes:
    """A measured profile (`ProfiledInstructionsProto` of openxla/xla) with its microseconds in `UNIT`s.

    Each field of it is a message of names and, as the only numbers of 64 bits, of costs and latencies.
    """
    scaled, at = bytearray(profile), 0
    while at < len(profile):
        _, at = _varint(profile, at)
        size, at = _varint(profile, at)
        end = at + size
        while at < end:
            tag, at = _varint(profile, at)
            if tag & 7 == _FIXED64:
                struct.pack_into("<d", scaled, at, UNIT * struct.unpack_from("<d", profile, at)[0])
                at += 8
            else:
                assert tag & 7 == _BYTES, f"a profile of another form: tag {tag}"
                size, at = _varint(profile, at)
                at += size
    return bytes(scaled)


_FIXED64, _BYTES = 1, 2  # kinds of field in protocol buffers


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    value = shift = 0
    while True:
        value |= (message[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if message[at - 1] < 128:
            return value, at


def _write(path: Path, content: bytes) -> None:
    """Appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(partial, path)

"""Safetensors files, read and written one tensor at a time.

Headers are read and checked by the `safetensors` package. Data is read without its memory map
(mapped pages count as the process's memory: a model of 5 GB would show up as 5 GB), and files are written here, because
the package takes all tensors of a file at once.
"""

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from distrijax.errors import DistrijaxError

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]

# Dtypes that weights may have. Eight-bit floats come with scales that only their own loader understands.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_OTHERS: dict[str, np.dtype] = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "BOOL": np.dtype(np.bool_),
} | {f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)}

_READ_AT_ONCE = 1 << 30  # bytes; Linux reads at most 2 GiB in one call


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that has not been read yet.

    Attributes:
        load: reads the tensor; the result has this shape and dtype, and may be a view.
        file: the file that holds it, for messages.
    """

    shape: Shape
    dtype: np.dtype
    load: Callable[[], np.ndarray]
    file: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: Iterable[int]) -> "Tensor":
        """Return the tensor with `function` applied once it is read; `shape` is the shape of the result."""
        return dataclasses.replace(self, shape=tuple(shape), load=lambda: function(self.load()))

    def transpose(self, axes: Shape) -> "Tensor":
        """Return the tensor with its axes permuted."""
        if axes == tuple(range(len(self.shape))):
            return self
        return self.map(lambda array: array.transpose(axes), [self.shape[axis] for axis in axes])

    def reshape(self, shape: Shape) -> "Tensor":
        """Return the tensor in another shape."""
        return self.map(lambda array: array.reshape(shape), shape)

    def slice(self, start: int, stop: int) -> "Tensor":
        """Return the part from start to stop along the first axis."""
        return self.map(lambda array: array[start:stop], (stop - start, *self.shape[1:]))


def log_harmless(where: str, names: Collection[str]) -> None:
    """Name tensors that are not read because no picture depends on them."""
    if names:
        listed = ", ".join(sorted(names)[:12]) + " …" * (len(names) > 12)
        logger.warning("%s: ignored %d tensors that no picture depends on: %s", where, len(names), listed)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, reading only the header and checking it against the file's size.

    Raises:
        DistrijaxError: the file is not safetensors (the message says what it looks like), truncated or inconsistent.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
            with safe_open(path, "np"):  # checks the header
                pass
            length = int.from_bytes(start[:8], "little")
            file.seek(8)
            entries = json.loads(file.read(length))
    except OSError as error:
        raise DistrijaxError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise DistrijaxError(_not_safetensors(path, start, str(error))) from error
    entries.pop("__metadata__", None)
    tensors = {}
    for name, entry in entries.items():
        kind, shape = entry["dtype"], tuple(entry["shape"])
        dtype = DTYPES.get(kind) or _OTHERS.get(kind) or np.dtype(np.void)
        load = functools.partial(_load, path, 8 + length + entry["data_offsets"][0], shape, dtype)
        tensors[name] = Tensor(shape, dtype, load, f"{path}")
    return tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the free-form entries of a file's header; call `read_safetensors` first, which checks the file."""
    with safe_open(path, "np") as file:
        return file.metadata() or {}


def write_safetensors(
    path: str | Path, tensors: Mapping[str, tuple[Shape, np.dtype]], arrays: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Write a file of `tensors` (name -> shape and dtype), whose `arrays` arrive one by one, in any order."""
    # Widest elements first, as in the package, so that every tensor is aligned to its element.
    order = sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    offsets, position = {}, 0
    for name in order:
        shape, dtype = tensors[name]
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        offsets[name], position = position, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
        for name, array in arrays:
            if (array.shape, array.dtype) != tensors[name]:
                raise RuntimeError(f"{name}: promised {tensors[name]}, got {array.shape} {array.dtype}")
            file.seek(8 + len(text) + offsets.pop(name))
            file.write(array_bytes(np.ascontiguousarray(array)))
    if offsets:
        raise RuntimeError(f"{path}: never written: {sorted(offsets)}")


def array_bytes(array: np.ndarray) -> memoryview:
    """Return a contiguous array's memory as bytes; `memoryview` does not support bfloat16."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def _load(path: Path, offset: int, shape: Shape, dtype: np.dtype) -> np.ndarray:
    array = np.empty(shape, dtype)
    view, done = array_bytes(array), 0
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while done < len(view):
                count = file.readinto(view[done : done + _READ_AT_ONCE])
                if not count:
                    raise DistrijaxError(f"{path}: ends inside a tensor; was it changed while being read?")
                done += count
    except OSError as error:
        raise DistrijaxError(f"{path}: cannot be read: {error.strerror or error}") from error
    return array


_SIGNATURES = (
    (b"PK\x03\x04", "a zip archive, probably a PyTorch pickle", "pickles can run code and are never read"),
    (b"\x80\x02", "a Python pickle", "pickles can run code and are never read"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull` there"),
    (b"GGUF", "a GGUF file", "only safetensors are read"),
    (b"<", "a web page (HTML or XML)", "the download went wrong; fetch the file itself"),
)


def _not_safetensors(path: Path, start: bytes, reason: str) -> str:
    if not start:
        return f"{path}: the file is empty; download or copy it again"
    for signature, what, cure in _SIGNATURES:
        if start.lstrip().startswith(signature):
            return f"{path}: not a safetensors file but {what}: {cure}"
    return f"{path}: not a safetensors file, or a truncated or corrupted one ({reason}); download or copy it again"

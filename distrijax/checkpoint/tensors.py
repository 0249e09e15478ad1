"""Safetensors files, read and written one tensor at a time, with nothing but NumPy.

The format (https://huggingface.co/docs/safetensors): eight bytes with the header's length, little endian; the header,
a JSON object name -> {dtype, shape, data_offsets}; then the tensors' bytes without gaps. Plain reads, not a memory
map: mapped pages count as the process's memory, and a model of 5 GB would show up as 5 GB.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from distrijax.errors import DistrijaxError

Shape = tuple[int, ...]

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

# What a model's weights may be. Eight-bit floats come with scales that only their own loader knows.
WEIGHT_DTYPES = tuple(DTYPES[name] for name in ("F64", "F32", "F16", "BF16"))

_HEADER_LIMIT = 100_000_000  # bytes, the reference implementation's own limit
_READ_AT_ONCE = 1 << 30  # Linux reads at most 2 GiB in one call


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that has not been read yet.

    load: reads it; the result has this shape and dtype, and may be a view.
    file: where it comes from, for messages.
    """

    shape: Shape
    dtype: np.dtype
    load: Callable[[], np.ndarray]
    file: str = ""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: Iterable[int]) -> "Tensor":
        """The same tensor with `function` applied once it is read; `shape` is what that makes of it."""
        return dataclasses.replace(self, shape=tuple(shape), load=lambda: function(self.load()))

    def transpose(self, axes: tuple[int, ...]) -> "Tensor":
        if axes == tuple(range(len(self.shape))):
            return self
        return self.map(lambda array: array.transpose(axes), [self.shape[axis] for axis in axes])

    def reshape(self, shape: Shape) -> "Tensor":
        return self.map(lambda array: array.reshape(shape), shape)

    def rows(self, start: int, stop: int) -> "Tensor":
        """Rows start..stop of the first axis."""
        return self.map(lambda array: array[start:stop], (stop - start, *self.shape[1:]))


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name. The header is read and checked against the file's size; no tensor is.

    Raises DistrijaxError if the file is not safetensors (saying what it looks like), truncated or inconsistent.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise DistrijaxError(_not_safetensors(path, start + file.read(56), size))
            text = file.read(length)
    except OSError as error:
        raise DistrijaxError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = f"its header is not JSON ({error})" if text.lstrip()[:1] == b"{" else "it has no safetensors header"
        raise DistrijaxError(f"{path}: not a safetensors file, or a corrupted one: {reason}") from error
    if not isinstance(header, dict):
        raise DistrijaxError(f"{path}: a corrupted safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)

    tensors, spans = {}, []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        spans.append((begin, end, name))
        tensors[name] = Tensor(shape, dtype, _reader(path, 8 + length + begin, shape, dtype, name), str(path))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise DistrijaxError(f"{path}: a corrupted safetensors file: gap or overlap before tensor {name!r}")
        position = end
    if 8 + length + position != size:
        kind = "truncated" if size < 8 + length + position else "a corrupted safetensors file"
        raise DistrijaxError(
            f"{path}: {kind}: its header tells of {8 + length + position:,} bytes, the file has {size:,}; "
            "download or copy it again"
        )
    return tensors


def write_safetensors(
    path: str | Path, tensors: Mapping[str, tuple[Shape, np.dtype]], arrays: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Write a file while its tensors arrive, in any order.

    tensors: name -> (shape, dtype) of every one of them.
    arrays: the same names with their values, each once.
    """
    # Wide elements first, so that every tensor is aligned to its element, as the reference implementation orders them.
    order = sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
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
            shape, dtype = tensors[name]
            if array.shape != shape or array.dtype != dtype:
                raise RuntimeError(f"{name}: promised {shape} {dtype}, got {array.shape} {array.dtype}")
            file.seek(8 + len(text) + offsets.pop(name))
            file.write(memoryview(as_bytes(array)))  # type: ignore[arg-type]
    if offsets:
        raise RuntimeError(f"{path}: never written: {sorted(offsets)}")


def as_bytes(array: np.ndarray) -> np.ndarray:
    """A contiguous array's memory as bytes; `memoryview` does not know bfloat16."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _entry(path: Path, name: str, entry: Any) -> tuple[np.dtype, Shape, int, int]:
    def refuse(reason: str) -> DistrijaxError:
        return DistrijaxError(f"{path}: a corrupted safetensors file: tensor {name!r} {reason}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse("is not described by dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise refuse(f"has the unknown dtype {entry['dtype']!r}")
    if not all(isinstance(part, list) and all(type(n) is int and n >= 0 for n in part) for part in (shape, offsets)):
        raise refuse(f"has shape {shape!r} and offsets {offsets!r}")
    dtype = DTYPES[entry["dtype"]]
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise refuse(f"of shape {shape} and dtype {entry['dtype']} does not fill its offsets {offsets}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _reader(path: Path, offset: int, shape: Shape, dtype: np.dtype, name: str) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        array = np.empty(shape, dtype)
        view, done = memoryview(as_bytes(array)), 0  # type: ignore[arg-type]
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(offset)
                while done < len(view):
                    count = file.readinto(view[done : done + _READ_AT_ONCE])
                    if not count:
                        raise DistrijaxError(f"{path}: ends inside tensor {name!r}; was it changed while being read?")
                    done += count
        except OSError as error:
            raise DistrijaxError(f"{path}: cannot be read: {error.strerror or error}") from error
        return array

    return load


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return values


_SIGNATURES = (
    (b"PK\x03\x04", "a zip archive, probably a PyTorch pickle", "pickles can run code and are never read"),
    (b"\x80\x02", "a Python pickle", "pickles can run code and are never read"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull` there"),
    (b"GGUF", "a GGUF file", "only safetensors are read"),
    (b"\x89HDF", "an HDF5 file", "only safetensors are read"),
    (b"<", "a web page (HTML or XML)", "the download went wrong; fetch the file itself"),
    (b"\x08\x00\x12", "a protobuf (ONNX?)", "only safetensors are read"),
)


def _not_safetensors(path: Path, start: bytes, size: int) -> str:
    if not size:
        return f"{path}: the file is empty; download or copy it again"
    for signature, what, cure in _SIGNATURES:
        if start.lstrip().startswith(signature):
            return f"{path}: not a safetensors file but {what}: {cure}"
    length = int.from_bytes(start[:8], "little")
    if len(start) >= 9 and length <= _HEADER_LIMIT and start[8:9] == b"{":
        return f"{path}: truncated: its header alone has {length:,} bytes, the file {size:,}; download or copy it again"
    return f"{path}: not a safetensors file: it does not begin with a header"

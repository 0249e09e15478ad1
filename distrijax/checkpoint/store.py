"""The converted format: a folder with distrijax.json, one orbax item per component, and the tokenizers.

distrijax.json      what is in it: format version, every configuration, the size of every file, checksums
unet/ vae/ …        orbax: a flat dictionary path -> array, in our layout
tokenizer/ …        unchanged
"""

import asyncio
import dataclasses
import functools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.typing import DTypeLike
from orbax.checkpoint import type_handlers

from distrijax.checkpoint.component import Checkpoint, Component, Placement, Stream, cast, put
from distrijax.checkpoint.files import MANIFEST, first_line, read_json, write_json
from distrijax.checkpoint.folder import TOKENIZERS, checked_index, present_in
from distrijax.checkpoint.tensors import DTYPES, NAMES, Tensor, array_bytes
from distrijax.checkpoint.tokenizers import Files, read_tokenizer, write_tokenizer
from distrijax.config.entry import Json
from distrijax.errors import DistrijaxError

FORMAT = 1
_AGAIN = "copy it again, or convert the original again"
BATCH = 256 << 20  # bytes of parameters in memory at once while writing or reading


S = TypeVar("S", Tensor, np.ndarray | jax.Array)


def write_store(
    checkpoint: Checkpoint, folder: Path, *, dtype: DTypeLike | None = None, progress: Callable[[int], object] = int
) -> None:
    """Write a checkpoint into an empty folder, with one batch of tensors in memory at a time.

    Every tensor keeps its dtype unless there is one to cast to; `progress` is told the source bytes that are written.
    """
    components = {}
    for name, component in checkpoint.components.items():
        leaves = {
            path: dataclasses.replace(t, dtype=np.dtype(dtype or t.dtype)) for path, t in component.tensors.items()
        }
        handler = _StreamHandler(component, dtype, progress)
        registry = type_handlers.create_type_handler_registry(
            (Tensor, handler),
            (jax.Array, type_handlers.ArrayHandler()),  # orbax warns if it has none for jax.Array
        )
        # Weights hardly compress (trained fp16: by a tenth), and zstd would take most of the time.
        options = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False)
        with ocp.Checkpointer(options) as checkpointer:
            checkpointer.save(folder.resolve() / name, args=ocp.args.PyTreeSave(leaves))
        components[name] = {
            "config": dict(component.json),
            "class": checkpoint.index[name][1],
            "prefix": component.prefix,
            "parameters": {path: [NAMES[t.dtype], list(t.shape)] for path, t in leaves.items()},
            "checksums": handler.checksums,
        }
    for name, files in checkpoint.tokenizers.items():
        write_tokenizer(files, folder / name)
    manifest = {
        "format": FORMAT,
        "model_index": dict(checkpoint.index),
        "scheduler": dict(checkpoint.scheduler),
        "components": components,
        "files": _sizes(folder),
        "tokenizers": {name: _checksums(files) for name, files in checkpoint.tokenizers.items()},
    }
    write_json(folder / MANIFEST, manifest | {"checksum": _checksum_of(manifest)})


class Store:
    """A converted checkpoint. Its manifest is read and the size of every file checked, but no weights are read."""

    rejects: ClassVar = {
        "config": "has its own configuration; config is for single files",
        "variant": "is a converted checkpoint and has no variant {!r}; give a dtype",
    }

    def __init__(self, path: Path):
        self.path, where = path.resolve(), path / MANIFEST  # orbax takes no relative paths
        manifest = read_json(where)
        if manifest.get("format") != FORMAT:
            raise DistrijaxError(
                f"{where}: is of format {manifest.get('format')!r}, this version reads {FORMAT}; convert again"
            )
        stated = manifest.pop("checksum", None)
        try:
            if stated not in (None, _checksum_of(manifest)):
                raise ValueError("its checksum is not that of its contents")
            self.index = checked_index(dict(manifest["model_index"]), str(where))
            self._scheduler, self._components = dict(manifest["scheduler"]), dict(manifest["components"])
            self._sizes, self._tokenizers = dict(manifest["files"]), dict(manifest.get("tokenizers", {}))
            self._tensors = {
                name: {path: Tensor(tuple(s), DTYPES[d], _unread) for path, (d, s) in values["parameters"].items()}
                for name, values in self._components.items()
            }
            if absent := [name for name in present_in(self.index) if name not in self._components]:
                raise ValueError(f"it has no {absent[0]}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            raise DistrijaxError(f"{where}: is damaged ({reason}); {_AGAIN}") from error

    def component(self, name: str) -> Component:
        """Return a component, whose tensors are read later."""
        if name not in self._components:
            raise DistrijaxError(f"{self.path}: has no {name}")
        self._check_files(name)
        where, folder, values = str(self.path / MANIFEST), self.path / name, self._components[name]
        component, tensors = Component.from_json(name, values["config"], where, values["class"]), self._tensors[name]
        if {path: tensor.shape for path, tensor in tensors.items()} != component.shapes:
            raise DistrijaxError(f"{where}: the parameters of {name} are not those of its configuration")
        reader = functools.partial(_restore, folder, tensors, values.get("checksums", {}))
        prefix = values["prefix"]
        return dataclasses.replace(component, where=str(folder), tensors=tensors, prefix=prefix, reader=reader)

    def scheduler(self) -> Json:
        """Return its scheduler_config.json."""
        return self._scheduler

    def tokenizers(self, names: Iterable[str]) -> dict[str, Files]:
        """Return the files of its tokenizers."""
        found = {}
        for name in names:
            self._check_files(name)
            found[name] = read_tokenizer(self.path / name)
            if self._tokenizers.get(name) not in (None, _checksums(found[name])):
                raise DistrijaxError(f"{self.path / name}: is damaged; {_AGAIN}")
        return found

    def verify(self) -> int:
        """Read everything, compare it with its checksums, and return the number of tensors."""
        present = present_in(self.index)
        self.tokenizers([TOKENIZERS[name] for name in present if name in TOKENIZERS])
        if not all("checksums" in self._components[name] for name in present):
            raise DistrijaxError(f"{self.path}: was converted before there were checksums; convert the original again")
        return sum(1 for name in present for _ in self.component(name).stream())

    def _check_files(self, name: str) -> None:
        sizes = _sizes(self.path, f"{name}/**/*")
        expected = {file: size for file, size in self._sizes.items() if file.split("/")[0] == name}
        if wrong := sorted(file for file, size in expected.items() if sizes.get(file) != size):
            raise DistrijaxError(
                f"{self.path}: is damaged: {len(wrong)} files are missing or of the wrong size, such as {wrong[0]}; "
                f"{_AGAIN}"
            )


def _restore(
    folder: Path,
    tensors: Mapping[str, Tensor],
    checksums: Mapping[str, int],
    dtype: DTypeLike | None,
    placement: Placement | None,
) -> Stream:
    """Yield the arrays of a component, read in batches by orbax and checked."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(restore_concurrent_gb=4)) as checkpointer:
        for batch in batches(tensors.items()):
            item = {path: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype) for path, tensor in batch}
            args = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path, _ in batch}
            restore = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
            try:
                arrays = checkpointer.restore(folder, args=restore)
            except MemoryError:
                raise
            except Exception as error:  # tensorstore raises ValueError, orbax several kinds of its own
                raise DistrijaxError(f"{folder}: is damaged ({first_line(error)}); {_AGAIN}") from error
            for path, tensor in batch:
                array = arrays.pop(path)
                read = isinstance(array, np.ndarray) and (array.shape, array.dtype) == (tensor.shape, tensor.dtype)
                if not read or checksums.get(path) not in (None, checksum(array)):  # None: from before there were any
                    raise DistrijaxError(f"{folder}: is damaged ({path} is not as it was written); {_AGAIN}")
                array = cast(array, dtype, f"{folder}: {path}")
                yield path, array if placement is None else put(array, placement)


def checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of an array's bytes, at 2.5 GB/s: it finds every flipped bit, and every burst of up to 32."""
    return zlib.crc32(array_bytes(np.ascontiguousarray(array)))


def _checksums(files: Files) -> dict[str, int]:
    return {name: zlib.crc32(content) for name, content in files.items()}


def _checksum_of(manifest: Json) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def batches(named: Iterable[tuple[str, S]], limit: int = BATCH) -> Iterator[list[tuple[str, S]]]:
    """Yield (name, array or tensor) in groups of at most `limit` bytes, at least one in each."""
    group: list[tuple[str, S]] = []
    size = 0
    for name, value in named:
        if group and size + value.nbytes > limit:
            yield group
            group, size = [], 0
        group.append((name, value))
        size += value.nbytes
    if group:
        yield group


class _StreamHandler(type_handlers.NumpyHandler):
    """A handler that writes a component's tensors, reading a batch only when the previous one is on the disk.

    Orbax's own handler takes the whole tree as arrays, at least the U-Net's 5.1 GB; this one peaked at 1.1 GB.
    """

    def __init__(self, component: Component, dtype: DTypeLike | None, progress: Callable[[int], object]):
        super().__init__(deepcopy_host_arrays=False)
        self.checksums: dict[str, int] = {}
        self._component, self._dtype, self._progress = component, dtype, progress

    async def serialize(
        self,
        values: Sequence[Tensor],
        infos: Sequence[type_handlers.ParamInfo],
        args: Sequence[type_handlers.SaveArgs] | None = None,
    ) -> list:
        infos_by_path = {info.name: info for info in infos}
        args_by_path = dict(zip(infos_by_path, args or [type_handlers.SaveArgs()] * len(infos), strict=True))
        for batch in batches(self._component.stream(self._dtype)):
            arrays = [array for _, array in batch]
            self.checksums |= {path: checksum(np.asarray(array)) for path, array in batch}
            where = [infos_by_path[path] for path, _ in batch]
            for future in await super().serialize(arrays, where, [args_by_path[path] for path, _ in batch]):
                await asyncio.to_thread(future.result)
            self._progress(sum(self._component.tensors[path].nbytes for path, _ in batch))
        return []


def _sizes(folder: Path, pattern: str = "**/*") -> dict[str, int]:
    files = [path for path in folder.glob(pattern) if path.is_file() and path.name != MANIFEST]
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def _unread() -> np.ndarray:
    raise RuntimeError("the tensors of a converted checkpoint are read by its components' reader")

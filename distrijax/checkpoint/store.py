"""The converted format: a folder with distrijax.json, one orbax item a component, and the tokenizers.

distrijax.json      what is in it: format version, every configuration, and the size of every file
unet/ vae/ …        orbax: a flat dictionary path -> array, in our layout
tokenizer/ …        as they came
"""

import asyncio
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding
from jax.typing import DTypeLike
from orbax.checkpoint import type_handlers

from distrijax.checkpoint.build import blueprint
from distrijax.checkpoint.files import MANIFEST, read_json, write_json
from distrijax.checkpoint.folder import PROJECTS, check_pipeline, present, read_tokenizers
from distrijax.checkpoint.source import COMPONENTS, Component, Placement, Source, cast, check_finite
from distrijax.checkpoint.tensors import DTYPES, NAMES, Tensor
from distrijax.checkpoint.tokenizers import write_tokenizer
from distrijax.errors import DistrijaxError

FORMAT = 1
BATCH = 256 << 20  # bytes of parameters in memory at once while writing or reading

Progress = Callable[[int], Any]  # told of every so many bytes


def write_store(source: Source, folder: Path, *, dtype: DTypeLike | None = None, progress: Progress = int) -> None:
    """Write a checkpoint into an empty folder, a batch of tensors in memory at a time.

    dtype: cast to it; None keeps every tensor as it is.
    progress: called with the number of source bytes done.
    """
    components = {}
    for name, component in source.components.items():
        _save(component, folder / name, dtype, progress)
        components[name] = {
            "config": dict(component.config),
            "class": source.index[name][1],
            "prefix": component.prefix,
            "parameters": {
                path: [NAMES[_kept(tensor, dtype)], list(tensor.shape)] for path, tensor in component.tensors.items()
            },
        }
    for name, files in source.tokenizers.items():
        write_tokenizer(files, folder / name)
    manifest = {
        "format": FORMAT,
        "model_index": dict(source.index),
        "scheduler": dict(source.scheduler),
        "components": components,
        "files": {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)},
    }
    write_json(folder / MANIFEST, manifest)


def open_store(folder: Path) -> Source:
    """A converted checkpoint: its manifest, with every file there and of the right size; no weights are read."""
    where = folder / MANIFEST
    manifest = read_json(where)
    if manifest.get("format") != FORMAT:
        raise DistrijaxError(
            f"{where}: is of format {manifest.get('format')!r}, this version reads {FORMAT}; convert the original again"
        )
    try:
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
        wrong = sorted(name for name, size in manifest["files"].items() if sizes.get(name) != size)
        index, scheduler = dict(manifest["model_index"]), dict(manifest["scheduler"])
        entries = {name: manifest["components"][name] for name in COMPONENTS if name in manifest["components"]}
        kinds = {name: (dict(entry["config"]), entry["class"], entry["prefix"]) for name, entry in entries.items()}
        parameters = {name: dict(entry["parameters"]) for name, entry in entries.items()}
        specs = {
            name: {path: (tuple(shape), DTYPES[dtype]) for path, (dtype, shape) in values.items()}
            for name, values in parameters.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DistrijaxError(f"{where}: is damaged ({error!r}); convert the original again") from error
    if wrong:
        raise DistrijaxError(
            f"{folder}: is damaged: {len(wrong)} files are missing or of the wrong size, such as {wrong[0]}; "
            "copy it again, or convert the original again"
        )
    check_pipeline(index, str(where))
    if absent := [name for name in COMPONENTS if present(index, name) and name not in kinds]:
        raise DistrijaxError(f"{where}: is damaged (it has no {absent[0]}); convert the original again")
    components: dict[str, Component] = {}
    for name, (config, kind, prefix) in kinds.items():
        blue = blueprint(name, config, str(where), with_projection=PROJECTS.get(kind))
        if {path: shape for path, (shape, _) in specs[name].items()} != blue.shapes:
            raise DistrijaxError(f"{where}: the parameters of {name} are not those of its configuration")
        tensors = {path: Tensor(shape, dtype, _unread, str(folder)) for path, (shape, dtype) in specs[name].items()}
        components[name] = StoredComponent(name, config, blue, tensors, str(folder / name), prefix)
    return Source(str(folder), components, scheduler, index, read_tokenizers(folder, components))


@dataclasses.dataclass(frozen=True)
class StoredComponent(Component):
    """A component of a converted checkpoint: orbax reads it in batches, each device its own part."""

    def stream(
        self, dtype: DTypeLike | None = None, placement: Placement | None = None
    ) -> Iterator[tuple[str, np.ndarray | jax.Array]]:
        if isinstance(placement, jax.Device):
            placement = SingleDeviceSharding(placement)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(restore_concurrent_gb=4)) as checkpointer:
            for batch in batches(self.tensors):
                yield from self._restore(checkpointer, batch, dtype, placement)

    def _restore(
        self, checkpointer: ocp.Checkpointer, batch: Sequence[str], dtype: DTypeLike | None, sharding: Sharding | None
    ) -> Iterator[tuple[str, np.ndarray | jax.Array]]:
        item, args = {}, {}
        for path in batch:
            tensor = self.tensors[path]
            item[path] = jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
            if sharding is None:
                args[path] = ocp.RestoreArgs(restore_type=np.ndarray)
            else:
                args[path] = ocp.ArrayRestoreArgs(sharding=sharding, dtype=np.dtype(dtype or tensor.dtype))
        restore = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
        try:
            with _quietly():
                arrays = checkpointer.restore(self.where, args=restore)
        except (MemoryError, jax.errors.JaxRuntimeError):  # a device that is full, for one
            raise
        except Exception as error:  # tensorstore raises ValueError, orbax several kinds of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DistrijaxError(f"{self.where}: is damaged ({reason}); convert the original again") from error
        for path in batch:
            array, what = arrays.pop(path), f"{self.where}: {path}"
            if sharding is None:
                array = cast(array, dtype, what)
            elif array.dtype != self.tensors[path].dtype:
                check_finite(array, what)
            yield path, array


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """If one read fails, those under way report to an event loop that is gone: hundreds of tracebacks for one fault."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    except Exception:
        time.sleep(1)  # they end meanwhile
        raise
    finally:
        sys.unraisablehook = before


def batches(tensors: dict[str, Tensor] | Any, limit: int = BATCH) -> Iterator[list[str]]:
    """Names in groups of at most `limit` bytes, at least one in each."""
    group: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if group and size + tensor.nbytes > limit:
            yield group
            group, size = [], 0
        group.append(name)
        size += tensor.nbytes
    if group:
        yield group


class _Leaf:
    """Stands for an array in the tree that orbax saves, until the handler below takes it from the stream."""

    def __init__(self, tensor: Tensor, dtype: DTypeLike | None):
        self.shape, self.dtype = tensor.shape, _kept(tensor, dtype)
        self.ndim, self.size, self.nbytes = len(self.shape), int(np.prod(self.shape)), tensor.nbytes


class _StreamHandler(type_handlers.NumpyHandler):
    """Saves leaves as NumPy arrays, reading a batch only when the one before it is on the disk.

    Orbax's own handlers take the whole tree as arrays, and copy it before they write: twice the model in memory.
    """

    def __init__(self, stream: Iterable[tuple[str, Any]], order: Sequence[str], progress: Progress):
        super().__init__(deepcopy_host_arrays=False)
        self._stream, self._order, self._progress = iter(stream), order, progress

    async def serialize(self, values: Sequence[_Leaf], infos: Sequence[Any], args: Any = None) -> list[Any]:
        args = args or [type_handlers.SaveArgs()] * len(values)
        by_name = {info.name: (value, info, arg) for value, info, arg in zip(values, infos, args, strict=True)}
        for batch in batches({name: by_name[name][0] for name in self._order}):
            arrays = [next(self._stream)[1] for _ in batch]
            _, batch_infos, batch_args = zip(*(by_name[name] for name in batch), strict=True)
            for future in await super().serialize(arrays, batch_infos, batch_args):
                await asyncio.to_thread(future.result)
            self._progress(sum(by_name[name][0].nbytes for name in batch))
        return []


def _save(component: Component, folder: Path, dtype: DTypeLike | None, progress: Progress) -> None:
    leaves = {path: _Leaf(tensor, dtype) for path, tensor in component.tensors.items()}
    handler = _StreamHandler(component.stream(dtype), list(leaves), progress)
    registry = type_handlers.create_type_handler_registry(
        (_Leaf, handler),
        (jax.Array, type_handlers.ArrayHandler()),  # orbax warns if it has none for jax.Array
    )
    # Weights hardly compress (trained fp16: a tenth), and zstd would take most of the time.
    options = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False)
    with ocp.Checkpointer(options) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(leaves))


def _kept(tensor: Tensor, dtype: DTypeLike | None) -> np.dtype:
    return tensor.dtype if dtype is None else np.dtype(dtype)


def _files(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return []


def _unread() -> np.ndarray:
    raise RuntimeError("a stored component is read by its stream")

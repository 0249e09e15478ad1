"""The converted format: a folder with distrijax.json, one orbax item per component, and the tokenizers.

distrijax.json      what is in it: format version, every configuration, and the size of every file
unet/ vae/ …        orbax: a flat dictionary path -> array, in our layout
tokenizer/ …        unchanged
"""

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from jax.typing import DTypeLike
from orbax.checkpoint import type_handlers

from distrijax.checkpoint.component import COMPONENTS, Checkpoint, Component, Placement, Stream, cast, check_finite
from distrijax.checkpoint.files import MANIFEST, read_json, write_json
from distrijax.checkpoint.folder import check_pipeline, present_in, read_tokenizers
from distrijax.checkpoint.tensors import DTYPES, NAMES, Tensor
from distrijax.checkpoint.tokenizers import write_tokenizer
from distrijax.errors import DistrijaxError

FORMAT = 1
BATCH = 256 << 20  # bytes of parameters in memory at once while writing or reading


S = TypeVar("S", Tensor, np.ndarray | jax.Array)


def write_store(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    dtype: DTypeLike | None = None,
    progress: Callable[[int], object] = int,
) -> None:
    """Write a checkpoint into an empty folder, with one batch of tensors in memory at a time.

    Args:
        checkpoint: the checkpoint to read.
        folder: the folder to write into.
        dtype: dtype to cast to; None keeps that of every tensor.
        progress: called with the number of source bytes written.
    """
    components = {}
    for name, component in checkpoint.components.items():
        dtypes = {path: t.dtype if dtype is None else np.dtype(dtype) for path, t in component.tensors.items()}
        leaves = {path: dataclasses.replace(t, dtype=dtypes[path]) for path, t in component.tensors.items()}
        handler = _StreamHandler(component, dtype, progress)
        registry = type_handlers.create_type_handler_registry(
            (Tensor, handler),
            (jax.Array, type_handlers.ArrayHandler()),  # orbax warns if it has none for jax.Array
        )
        # Weights hardly compress (trained fp16: by a tenth), and zstd would take most of the time.
        options = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False)
        with ocp.Checkpointer(options) as checkpointer:
            checkpointer.save((folder / name).absolute(), args=ocp.args.PyTreeSave(leaves))
        components[name] = {
            "config": dict(component.json),
            "class": checkpoint.index[name][1],
            "prefix": component.prefix,
            "parameters": {path: [NAMES[t.dtype], list(t.shape)] for path, t in leaves.items()},
        }
    for name, files in checkpoint.tokenizers.items():
        write_tokenizer(files, folder / name)
    manifest = {
        "format": FORMAT,
        "model_index": dict(checkpoint.index),
        "scheduler": dict(checkpoint.scheduler),
        "components": components,
        "files": _sizes(folder),
    }
    write_json(folder / MANIFEST, manifest)


def open_store(folder: Path, replaced: Mapping[str, Component]) -> Checkpoint:
    """Open a converted checkpoint, reading its manifest and checking the size of every file, but reading no weights.

    Args:
        folder: the checkpoint.
        replaced: components to use in place of the checkpoint's own, which are not read.
    """
    where = folder / MANIFEST
    manifest = read_json(where)
    if manifest.get("format") != FORMAT:
        raise DistrijaxError(
            f"{where}: is of format {manifest.get('format')!r}, this version reads {FORMAT}; convert the original again"
        )
    try:
        sizes = _sizes(folder)
        expected = {name: size for name, size in manifest["files"].items() if name.split("/")[0] not in replaced}
        wrong = sorted(name for name, size in expected.items() if sizes.get(name) != size)
        index, scheduler = dict(manifest["model_index"]), dict(manifest["scheduler"])
        entries = {name: manifest["components"][name] for name in COMPONENTS if name in manifest["components"]}
        tensors = {
            name: {
                path: Tensor(tuple(shape), DTYPES[dtype], _unread, str(folder))
                for path, (dtype, shape) in entry["parameters"].items()
            }
            for name, entry in entries.items()
        }
        kinds = {name: (dict(entry["config"]), entry["class"], entry["prefix"]) for name, entry in entries.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DistrijaxError(f"{where}: is damaged ({error!r}); convert the original again") from error
    if wrong:
        raise DistrijaxError(
            f"{folder}: is damaged: {len(wrong)} files are missing or of the wrong size, such as {wrong[0]}; "
            "copy it again, or convert the original again"
        )
    check_pipeline(index, str(where))
    if absent := [name for name in present_in(index) if name not in kinds]:
        raise DistrijaxError(f"{where}: is damaged (it has no {absent[0]}); convert the original again")
    components = {}
    for name, (config, kind, prefix) in kinds.items():
        if name in replaced:
            components[name] = replaced[name]
            continue
        component = Component.from_json(name, config, str(where), kind)
        if {path: tensor.shape for path, tensor in tensors[name].items()} != component.shapes:
            raise DistrijaxError(f"{where}: the parameters of {name} are not those of its configuration")
        reader = functools.partial(_restore, folder / name, tensors[name])
        components[name] = dataclasses.replace(
            component, where=str(folder / name), tensors=tensors[name], prefix=prefix, reader=reader
        )
    return Checkpoint(str(folder), components, index, scheduler, read_tokenizers(folder, components))


def _restore(
    folder: Path, tensors: Mapping[str, Tensor], dtype: DTypeLike | None, placement: Placement | None
) -> Stream:
    """Yield the arrays of a component, read in batches by orbax, each device reading its own part."""
    sharding = SingleDeviceSharding(placement) if isinstance(placement, jax.Device) else placement
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(restore_concurrent_gb=4)) as checkpointer:
        for batch in batches(tensors.items()):
            item = {path: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype) for path, tensor in batch}
            args: dict[str, ocp.RestoreArgs] = {}
            for path, tensor in batch:
                if sharding is None:
                    args[path] = ocp.RestoreArgs(restore_type=np.ndarray)
                else:
                    args[path] = ocp.ArrayRestoreArgs(sharding=sharding, dtype=np.dtype(dtype or tensor.dtype))
            restore = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
            try:
                arrays = checkpointer.restore(folder, args=restore)
            except (MemoryError, jax.errors.JaxRuntimeError):  # such as a full device
                raise
            except Exception as error:  # tensorstore raises ValueError, orbax several kinds of its own
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                raise DistrijaxError(f"{folder}: is damaged ({reason}); convert the original again") from error
            for path, tensor in batch:
                array, what = arrays.pop(path), f"{folder}: {path}"
                if sharding is None:
                    array = cast(array, dtype, what)
                elif array.dtype != tensor.dtype:
                    check_finite(array, what)
                yield path, array


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
            where = [infos_by_path[path] for path, _ in batch]
            for future in await super().serialize(arrays, where, [args_by_path[path] for path, _ in batch]):
                await asyncio.to_thread(future.result)
            self._progress(sum(self._component.tensors[path].nbytes for path, _ in batch))
        return []


def _sizes(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def _unread() -> np.ndarray:
    raise RuntimeError("the tensors of a converted checkpoint are read by its components' reader")

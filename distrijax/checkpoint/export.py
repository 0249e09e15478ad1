"""Bit-exact export to a diffusers folder, which `diffusers.StableDiffusionXLPipeline.from_pretrained` loads."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.typing import DTypeLike

from distrijax.checkpoint.component import COMPONENTS, Checkpoint, Component, Parts, cast
from distrijax.checkpoint.files import MODEL_INDEX, SCHEDULER, appearing, write_json
from distrijax.checkpoint.hub import weight_names
from distrijax.checkpoint.known import packaged
from distrijax.checkpoint.tensors import write_safetensors
from distrijax.checkpoint.tokenizers import write_tokenizer
from distrijax.checks import path_of, variant_of

_NOT_EXPORTED = ("image_encoder", "feature_extractor")  # parts of IP-Adapters, which do not belong to SDXL


def save_diffusers(
    folder: str | Path,
    parts: Parts,
    *,
    variant: str | None = None,
    dtype: DTypeLike | None = None,
    overwrite: bool = False,
) -> Path:
    """Write models in memory as a diffusers folder, which appears only when it is complete.

    With several processes, all must hold the weights, and the first one writes.

    Args:
        folder: a path that does not exist, or a checkpoint if `overwrite`.
        parts: parts of a pipeline; its `index` needs only flags and the class, which default to SDXL's.
        variant, dtype: see `write_folder`.
    """
    folder = path_of("folder", folder).absolute()
    variant_of("variant", variant)
    if jax.process_index() == 0:
        present = [name for name in COMPONENTS if getattr(parts, name) is not None]
        components = {name: Component.from_module(name, getattr(parts, name)) for name in present}
        tokenizers = {name: getattr(parts, name) for name in ("tokenizer", "tokenizer_2") if getattr(parts, name)}
        index = packaged(f"{'base' if parts.text_encoder else 'refiner'}_model_index") | dict(parts.index)
        checkpoint = Checkpoint(str(folder), components, index, parts.scheduler.config, tokenizers)
        with appearing(folder, overwrite=overwrite) as partial:
            write_folder(checkpoint.with_classes(), partial, variant=variant, dtype=dtype)
    return folder


def write_folder(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    variant: str | None = None,
    dtype: DTypeLike | None = None,
    progress: Callable[[int], object] = int,
) -> None:
    """Write a checkpoint as diffusers does, into an empty folder, with one tensor in memory at a time.

    Args:
        variant: suffix of the weights' file names, as in `diffusion_pytorch_model.fp16.safetensors`.
        dtype: dtype to cast to; None keeps that of every tensor.
        progress: called with the number of source bytes written.
    """
    index = {name: [None, None] if name in _NOT_EXPORTED else value for name, value in checkpoint.index.items()}
    write_json(folder / MODEL_INDEX, index)
    for name, component in checkpoint.components.items():
        (folder / name).mkdir()
        config = dict(component.json)
        for key in {"dtype", "torch_dtype"} & set(config) if dtype is not None else ():
            config[key] = np.dtype(dtype).name
        write_json(folder / name / "config.json", config)
        _write_weights(component, folder / name / weight_names(name, variant)[0], dtype, progress)
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / SCHEDULER, checkpoint.scheduler)
    for name, files in checkpoint.tokenizers.items():
        write_tokenizer(files, folder / name)


def _write_weights(
    component: Component, file: Path, dtype: DTypeLike | None, progress: Callable[[int], object]
) -> None:
    table = component.table(component.prefix)
    entries = {path: table.to_torch(path) for path in component.tensors}
    layout = {
        entries[path].name: (
            tuple(tensor.shape[axis] for axis in entries[path].axes),
            tensor.dtype if dtype is None else np.dtype(dtype),
        )
        for path, tensor in component.tensors.items()
    }

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for path, array in component.stream(dtype):
            name, axes = entries[path]
            yield name, cast(np.asarray(array).transpose(axes), None, path)
            progress(component.tensors[path].nbytes)

    write_safetensors(file, layout, arrays())

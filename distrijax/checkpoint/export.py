"""Back to a diffusers folder, which `diffusers.StableDiffusionXLPipeline.from_pretrained` loads; bit for bit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from distrijax.checkpoint.files import MODEL_INDEX, write_json
from distrijax.checkpoint.hub import weight_names
from distrijax.checkpoint.source import Component, Source, cast
from distrijax.checkpoint.tensors import Shape, write_safetensors
from distrijax.checkpoint.tokenizers import write_tokenizer

_NOT_EXPORTED = ("image_encoder", "feature_extractor")  # of IP-Adapters: no part of SDXL, and not kept


def write_folder(
    source: Source,
    folder: Path,
    *,
    variant: str | None = None,
    dtype: DTypeLike | None = None,
    progress: Callable[[int], Any] = int,
) -> None:
    """Write a checkpoint as diffusers does, into an empty folder, a tensor in memory at a time.

    variant: goes into the weights' file names, as in `diffusion_pytorch_model.fp16.safetensors`.
    dtype: cast to it; None keeps every tensor as it is.
    progress: called with the number of source bytes done.
    """
    index = {name: [None, None] if name in _NOT_EXPORTED else value for name, value in source.index.items()}
    write_json(folder / MODEL_INDEX, index)
    for name, component in source.components.items():
        (folder / name).mkdir()
        config = dict(component.config)
        for key in {"dtype", "torch_dtype"} & set(config) if dtype is not None else ():
            config[key] = np.dtype(dtype).name
        write_json(folder / name / "config.json", config)
        _write_weights(component, folder / name / weight_names(name, variant)[0], dtype, progress)
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", dict(source.scheduler))
    for name, files in source.tokenizers.items():
        write_tokenizer(files, folder / name)


def _write_weights(component: Component, file: Path, dtype: DTypeLike | None, progress: Callable[[int], Any]) -> None:
    table = component.blueprint.table(component.prefix)
    entries, layout = {}, {}
    for path, tensor in component.tensors.items():
        entry = entries[path] = table.to_torch(path)
        assert entry is not None, f"the table has no rule for {path}"
        shape: Shape = tuple(tensor.shape[axis] for axis in entry.axes)
        layout[entry.name] = shape, tensor.dtype if dtype is None else np.dtype(dtype)

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for path, array in component.stream(dtype):
            entry = entries[path]
            assert entry is not None
            yield entry.name, cast(np.asarray(array).transpose(entry.axes), None, path)
            progress(component.tensors[path].nbytes)

    write_safetensors(file, layout, arrays())

"""Loading of checkpoints in any format, and conversion between formats."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack

import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike
from tqdm import tqdm

from distrijax.checkpoint.component import COMPONENTS, Checkpoint, Component, Parts, Placement
from distrijax.checkpoint.export import scheduler_json, write_folder
from distrijax.checkpoint.files import MANIFEST, MODEL_INDEX, appearing
from distrijax.checkpoint.folder import open_component, open_folder
from distrijax.checkpoint.hub import TOKENIZER_PATTERNS, component_patterns, locate, pipeline_patterns, weight_names
from distrijax.checkpoint.known import KNOWN, published
from distrijax.checkpoint.single_file import open_component_file, open_single_file
from distrijax.checkpoint.tokenizers import sdxl_tokenizers
from distrijax.config import VAEConfig
from distrijax.demo import MODEL as DEMO
from distrijax.errors import DistrijaxError
from distrijax.models.text_encoder import TextEncoder
from distrijax.models.unet import UNet
from distrijax.models.vae import VAE
from distrijax.schedulers import Scheduler, scheduler_from_config

DTypes: TypeAlias = DTypeLike | Mapping[str, DTypeLike]  # one for all, or by component's name


class SourceOptions(TypedDict, total=False):
    """Options for reading a checkpoint and replacing its parts; all are optional.

    A part that is an object is used as it is, and the checkpoint's own is not read. A part that is a path or hub id is
    read from there: a component's folder, a pipeline's folder, a converted checkpoint, or a `.safetensors` file with
    that component alone or a whole model.

    Attributes:
        variant: suffix of the weights' file names in a diffusers folder or on the hub, such as "fp16". Parts from
            elsewhere that lack it are read without it.
        config: for single files that are neither SDXL base nor refiner: a diffusers folder or hub id.
        tokenizer: a folder or hub id with CLIP's vocabulary, or with the folders `tokenizer` and `tokenizer_2`, for
            single files, which have none; by default OpenAI's, from the hub.
        unet, vae, text_encoder, text_encoder_2: parts in place of the checkpoint's own.
        scheduler: the same: an object, a scheduler_config.json, or a folder that has one.
    """

    variant: str | None
    config: str | Path | None
    tokenizer: str | Path | None
    unet: UNet | str | Path | None
    vae: VAE | str | Path | None
    text_encoder: TextEncoder | str | Path | None
    text_encoder_2: TextEncoder | str | Path | None
    scheduler: Scheduler | str | Path | None


def open_source(source: str | Path, **options: Unpack[SourceOptions]) -> Checkpoint:
    """Open a checkpoint and check it, without reading its weights.

    Args:
        source: a converted checkpoint, a diffusers folder, a hub id, or an original single file (`.safetensors`).
        options: see `SourceOptions`.

    Raises:
        DistrijaxError: it is absent, damaged, of another kind, or its tensors do not match the model; all are listed.
    """
    if unknown := set(options) - set(SourceOptions.__annotations__):
        names = ", ".join(SourceOptions.__annotations__)
        raise DistrijaxError(f"there is no option {min(unknown)!r} for a checkpoint; the options are {names}")
    variant, config, tokenizer = options.get("variant"), options.get("config"), options.get("tokenizer")
    parts = {name: options.get(name) for name in COMPONENTS}
    replaced = {name: _part(name, part, variant, config) for name, part in parts.items() if part is not None}
    scheduler = scheduler_json(options.get("scheduler"))
    path = locate(source, pipeline_patterns(variant, replaced))
    if path.is_file():
        _check_suffix(path)
        if variant is not None and not replaced:
            raise DistrijaxError(f"{path}: is a single file and has no variant {variant!r}; give none")
        checkpoint = open_single_file(path, config, tokenizer, replaced)
    else:
        if config is not None and not replaced:
            raise DistrijaxError(f"{path}: has its own configuration; config is for single files")
        if (path / MANIFEST).is_file():
            from distrijax.checkpoint.store import open_store  # orbax takes a second to import

            if variant is not None and not replaced:
                raise DistrijaxError(f"{path}: is a converted checkpoint and has no variant {variant!r}; give a dtype")
            checkpoint = open_store(path, replaced)
        else:
            checkpoint = open_folder(path, variant, replaced, scheduler)
        if tokenizer is not None:
            files = sdxl_tokenizers(locate(tokenizer, TOKENIZER_PATTERNS), tuple(checkpoint.tokenizers))
            checkpoint = dataclasses.replace(checkpoint, tokenizers=files)
    if strange := set(replaced) - set(checkpoint.components):
        raise DistrijaxError(f"{path}: is a model without {min(strange)}, as refiners are; give none")
    if scheduler is not None:
        checkpoint = dataclasses.replace(checkpoint, scheduler=scheduler)
    return checkpoint.with_classes() if replaced or scheduler else checkpoint


def find(name: str) -> Checkpoint:
    """Return one of `KNOWN`, `demo`, or any source that `from_pretrained` takes, without reading weights.

    Raises:
        DistrijaxError: there is no such model, or it is not of the SDXL family.
    """
    if name in KNOWN:
        checkpoint = published(*KNOWN[name])
    elif name != "demo" and "/" not in name and not Path(name).exists():
        raise DistrijaxError(f"model is {name!r}; it must be {', '.join(KNOWN)}, demo, or a checkpoint that exists")
    else:
        checkpoint = open_source(DEMO if name == "demo" else name)
    return dataclasses.replace(checkpoint, name=name)


def load(
    source: str | Path,
    *,
    dtype: DTypes | None = None,
    sharding: Placement | None = None,
    progress: bool = True,
    **options: Unpack[SourceOptions],
) -> Parts:
    """Read a checkpoint into modules, each tensor straight to its devices: the host never holds a second copy.

    Args:
        source: see `open_source`.
        dtype: dtype of weights and arithmetic, for all components or by name, as in {"unet": jnp.bfloat16}; by
            default, and for absent names, the checkpoint's own. An autoencoder whose config says `force_upcast` is
            read as float32 instead of float16. Parts that are objects are not changed.
        sharding: one that fits every parameter (such as a replicated one), or a device; by default JAX's.
        progress: show a progress bar.
        options: see `SourceOptions`.
    """
    _, read = opened(source, dtype=dtype, sharding=sharding, **options)
    return read(progress)


def opened(
    source: str | Path,
    *,
    dtype: DTypes | None = None,
    sharding: Placement | None = None,
    **options: Unpack[SourceOptions],
) -> tuple[Parts, Callable[[bool], Parts]]:
    """Open a checkpoint: return its parts with shapes for weights, and a function that reads them; see `load`."""
    checkpoint = open_source(source, **options)
    _check_dtypes(dtype, checkpoint)
    placement = next(iter(jnp.zeros(()).devices())) if sharding is None else sharding
    given: dict[str, Any] = {name: component.module for name, component in checkpoint.components.items()}
    unread = {name: component for name, component in checkpoint.components.items() if component.module is None}
    _check_sharding(placement, unread)
    choices = {name: dtype.get(name) if isinstance(dtype, Mapping) else dtype for name in unread}
    dtypes = {n: _safe(c, c.dtype if choices[n] is None else jnp.dtype(choices[n])) for n, c in unread.items()}
    scheduler = options.get("scheduler")

    def parts(modules: Mapping[str, Any]) -> Parts:
        return Parts(
            **{"text_encoder": None, **given, **modules},
            tokenizer=checkpoint.tokenizers.get("tokenizer"),
            tokenizer_2=checkpoint.tokenizers["tokenizer_2"],
            scheduler=scheduler if isinstance(scheduler, Scheduler) else scheduler_from_config(checkpoint.scheduler),
            index=checkpoint.index,
        )

    def read(progress: bool) -> Parts:
        modules = {}
        with _bar("loading", sum(component.nbytes for component in unread.values()), progress) as advance:
            for name, component in unread.items():
                arrays: dict[str, Any] = {}
                for path, array in component.stream(dtypes[name], placement):
                    arrays[path] = array
                    advance(component.tensors[path].nbytes)
                modules[name] = component.build(arrays, dtypes[name])
        return parts(modules)

    where = placement if isinstance(placement, Sharding) else None
    return parts({name: component.described(dtypes[name], where) for name, component in unread.items()}), read


def load_single_file(file: str | Path, **arguments: Any) -> Parts:
    """Read an original `.safetensors` file into modules; see `load`, which also takes folders and hub ids."""
    return load(check_single_file(file), **arguments)


def check_single_file(file: str | Path) -> str | Path:
    """Return `file` if it is one."""
    if not Path(file).expanduser().is_file():
        raise DistrijaxError(f"{file}: is not a file; folders and hub ids are for from_pretrained")
    return file


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: DTypeLike | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **options: Unpack[SourceOptions],
) -> Path:
    """Write a checkpoint in the converted format; the target appears only when it is complete.

    Args:
        source: see `open_source`.
        target: a folder that does not exist, or a checkpoint if `overwrite`.
        dtype: dtype to cast every tensor to; None keeps every bit.
        overwrite: replace a checkpoint, and the remains of a killed conversion beside it.
        progress: show a progress bar.
        options: see `SourceOptions`.
    """
    from distrijax.checkpoint.store import write_store

    with _writing("converting", source, target, dtype, overwrite, progress, options) as (checkpoint, folder, advance):
        write_store(checkpoint, folder, dtype=dtype, progress=advance)
    return Path(target).expanduser().absolute()


def export(
    source: str | Path,
    target: str | Path,
    *,
    dtype: DTypeLike | None = None,
    overwrite: bool = False,
    target_variant: str | None = None,
    progress: bool = True,
    **options: Unpack[SourceOptions],
) -> Path:
    """Write a checkpoint as a diffusers folder; the target appears only when it is complete.

    Args:
        source, target, dtype, overwrite, progress, options: see `convert`.
        target_variant: suffix of the written weights' file names, such as "fp16".
    """
    with _writing("exporting", source, target, dtype, overwrite, progress, options) as (checkpoint, folder, advance):
        write_folder(checkpoint, folder, variant=target_variant, dtype=dtype, progress=advance)
    return Path(target).expanduser().absolute()


@contextmanager
def _writing(
    verb: str,
    source: str | Path,
    target: str | Path,
    dtype: DTypeLike | None,
    overwrite: bool,
    progress: bool,
    options: SourceOptions,
) -> Iterator[tuple[Checkpoint, Path, Callable[[int], object]]]:
    target = Path(target).expanduser().absolute()
    with appearing(target, overwrite=overwrite) as partial:
        checkpoint = open_source(source, **options)
        _check_dtypes(dtype, checkpoint)
        _check_apart(target, [source, *(value for value in options.values() if isinstance(value, str | Path))])
        with _bar(verb, checkpoint.nbytes, progress) as advance:
            yield checkpoint, partial, advance


def _part(name: str, part: object, variant: str | None, config: str | Path | None) -> Component:
    """Open a component to use in place of a checkpoint's own, with `variant` if it has that, otherwise without."""
    if not isinstance(part, str | Path):
        return Component.from_module(name, part)
    patterns = [p for v in {variant, None} for file in component_patterns(name, v) for p in (file, f"{name}/{file}")]
    path = locate(part, [*patterns, MODEL_INDEX])
    if path.is_file():
        _check_suffix(path)
        return open_component_file(path, name, config)
    if (path / MANIFEST).is_file():
        from distrijax.checkpoint.store import open_store

        components = open_store(path, {}).components
        if name not in components:
            raise DistrijaxError(f"{path}: has no {name}")
        return components[name]
    folder = path / name if (path / name).is_dir() else path
    has = any((folder / file).is_file() for file in weight_names(name, variant))
    return open_component(folder, name, variant if has else None)


def _safe(component: Component, dtype: np.dtype) -> np.dtype:
    """Return float32 for an autoencoder whose config says that it overflows in float16: SDXL's decodes to black."""
    config = component.config
    overflows = isinstance(config, VAEConfig) and config.force_upcast and dtype == jnp.float16
    return np.dtype(np.float32) if overflows else dtype


def _check_sharding(placement: Placement, components: Mapping[str, Component]) -> None:
    for name, component in components.items() if isinstance(placement, Sharding) else ():
        for path, tensor in component.tensors.items():
            try:
                placement.shard_shape(tensor.shape)
            except (ValueError, IndexError) as error:  # not divisible, or of fewer axes
                shape = list(tensor.shape)
                raise DistrijaxError(f"sharding: {placement} does not fit {name}'s {path} {shape}") from error


def _check_apart(target: Path, sources: list[str | Path]) -> None:
    for source in sources:
        path = Path(source).expanduser().resolve()
        if path.exists() and (target.resolve() in (path, *path.parents) or path in target.resolve().parents):
            raise DistrijaxError(f"{target}: overlaps with {source}, which is being read; choose another target")


def _check_dtypes(dtype: DTypes | None, opened: Checkpoint) -> None:
    by_name = dtype if isinstance(dtype, Mapping) else {"unet": dtype}
    for name, value in by_name.items():
        if name not in COMPONENTS:
            raise DistrijaxError(f"dtype: there is no component {name!r}; there are {', '.join(opened.components)}")
        try:
            valid = value is None or jnp.dtype(value) in (jnp.float32, jnp.bfloat16, jnp.float16)
        except TypeError:
            valid = False
        if not valid:
            raise DistrijaxError(f"dtype: {value!r} is not supported; choose float32, bfloat16 or float16")


def _check_suffix(path: Path) -> None:
    if path.suffix in (".ckpt", ".bin", ".pt", ".pth", ".pkl"):
        raise DistrijaxError(
            f"{path}: is a pickle, which can run code and is never read; look for the model's .safetensors file"
        )
    if path.suffix != ".safetensors":
        raise DistrijaxError(f"{path}: is not a .safetensors file; a source is such a file, a folder or a hub id")


@contextmanager
def _bar(verb: str, total: int, show: bool) -> Iterator[Callable[[int], object]]:
    with tqdm(total=total, unit="B", unit_scale=True, desc=verb, disable=not show) as bar:
        yield bar.update

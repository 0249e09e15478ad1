"""Loading of checkpoints in any format, and conversion between formats."""

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, Unpack

import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike
from tqdm import tqdm

from distrijax.checkpoint.component import COMPONENTS, Checkpoint, Component, Module, Parts, Placement
from distrijax.checkpoint.export import write_folder
from distrijax.checkpoint.files import MANIFEST, appearing
from distrijax.checkpoint.hub import local_path, locate
from distrijax.checkpoint.source import SourceOptions, open_part, open_source
from distrijax.checks import known_dtype, one_of, path_of, true_or_false, variant_of
from distrijax.config import VAEConfig
from distrijax.errors import DistrijaxError
from distrijax.schedulers import Scheduler, scheduler_from_config

DTypes: TypeAlias = DTypeLike | Mapping[str, DTypeLike]  # one for all, or by component's name


def load(
    source: str | Path,
    *,
    dtype: DTypes | None = None,
    sharding: Placement | None = None,
    progress: bool = True,
    **options: Unpack[SourceOptions],
) -> Parts:
    """Read a checkpoint into modules, a batch of tensors at a time: the host never holds a second copy.

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
    dtypes = {
        n: _safe(c, c.dtype if choices[n] is None else known_dtype("dtype", choices[n])) for n, c in unread.items()
    }
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


def load_part(
    name: str,
    source: str | Path | Module,
    *,
    dtype: DTypeLike | None = None,
    sharding: Placement | None = None,
    variant: str | None = None,
) -> Any:
    """Read a single model, such as a `vae`; one that is in memory already is returned as it is.

    Args:
        name: `unet`, `vae`, `text_encoder` or `text_encoder_2`.
        source: of that model alone or of a whole checkpoint, as for the option of that name; see `SourceOptions`.
        dtype, sharding: see `load`.
        variant: suffix of the weights' file names.
    """
    component = open_part(name, source, variant)
    if component.module is not None:
        return component.module
    placement = next(iter(jnp.zeros(()).devices())) if sharding is None else sharding
    dtype = _safe(component, component.dtype if dtype is None else known_dtype("dtype", dtype))
    arrays: dict[str, Any] = dict(component.stream(dtype, placement))
    return component.build(arrays, dtype)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str = "distrijax",
    dtype: DTypeLike | None = None,
    overwrite: bool = False,
    target_variant: str | None = None,
    progress: bool = True,
    **options: Unpack[SourceOptions],
) -> Path:
    """Write a checkpoint in another format; the target appears only when it is complete.

    Args:
        source: see `open_source`.
        target: a folder that does not exist, or a checkpoint if `overwrite`.
        to: `distrijax`, which loads fast, or `diffusers`.
        dtype: dtype to cast every tensor to; None keeps every bit.
        overwrite: replace a checkpoint, and the remains of a killed conversion beside it.
        target_variant: suffix of the weights' file names in a diffusers folder, such as "fp16".
        progress: show a progress bar.
        options: see `SourceOptions`.
    """
    dtype = None if dtype is None else known_dtype("dtype", dtype)
    variant_of("target_variant", target_variant)
    one_of("to", to, ("distrijax", "diffusers"))
    target = path_of("target", target).absolute()
    with appearing(target, overwrite=overwrite) as partial:
        checkpoint = open_source(source, **options)
        _check_dtypes(dtype, checkpoint)
        _check_apart(target, [source, *(value for value in options.values() if isinstance(value, str | Path))])
        nbytes = checkpoint.nbytes if dtype is None else checkpoint.parameters * np.dtype(dtype).itemsize
        free = shutil.disk_usage(partial).free
        if nbytes > free:
            raise DistrijaxError(
                f"{target}: takes {nbytes / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free there"
            )
        write: Callable[..., None]
        if to == "diffusers":
            write = functools.partial(write_folder, variant=target_variant)
        else:
            from distrijax.checkpoint.store import write_store as write  # orbax takes a second to import

            if target_variant is not None:
                raise DistrijaxError("target_variant names files of a diffusers folder; convert to diffusers")
        with _bar("converting", checkpoint.nbytes, progress) as advance:
            write(checkpoint, partial, dtype=dtype, progress=advance)
    return target


export = functools.partial(convert, to="diffusers")


def verify(source: str | Path) -> int:
    """Read a converted checkpoint, compare every tensor with its checksum, and return how many there are.

    Raises:
        DistrijaxError: it is damaged, or not a converted checkpoint.
    """
    from distrijax.checkpoint.store import Store

    path = locate(source, [])
    if not (path / MANIFEST).is_file():
        raise DistrijaxError(
            f"{path}: is not a converted checkpoint; safetensors files carry no checksums to compare with"
        )
    return Store(path).verify()


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
        path = local_path(source).resolve()
        if path.exists() and (target.resolve() in (path, *path.parents) or path in target.resolve().parents):
            raise DistrijaxError(f"{target}: overlaps with {source}, which is being read; choose another target")


def _check_dtypes(dtype: DTypes | None, opened: Checkpoint) -> None:
    by_name = dtype if isinstance(dtype, Mapping) else {"unet": dtype}
    for name, value in by_name.items():
        if name not in COMPONENTS:
            raise DistrijaxError(f"dtype: there is no component {name!r}; there are {', '.join(opened.components)}")
        if value is not None:
            known_dtype("dtype", value)


@contextmanager
def _bar(verb: str, total: int, show: bool) -> Iterator[Callable[[int], object]]:
    with tqdm(total=total, unit="B", unit_scale=True, desc=verb, disable=not true_or_false("progress", show)) as bar:
        yield bar.update

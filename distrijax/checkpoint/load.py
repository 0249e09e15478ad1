"""Any checkpoint, in any of its forms, to modules; and from one form to another.

A source is a converted checkpoint, a diffusers folder, the name of a repository on the hub, or an original single file.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Sharding
from jax.typing import DTypeLike
from tqdm import tqdm

from distrijax.checkpoint.export import write_folder
from distrijax.checkpoint.files import MANIFEST, MODEL_INDEX, appearing
from distrijax.checkpoint.folder import open_component, open_folder
from distrijax.checkpoint.hub import TOKENIZER_PATTERNS, component_patterns, locate, pipeline_patterns, weight_names
from distrijax.checkpoint.single_file import open_single_file, open_vae_file
from distrijax.checkpoint.source import Component, Placement, Source
from distrijax.checkpoint.tokenizers import Files, sdxl_tokenizers
from distrijax.config import VAEConfig
from distrijax.errors import DistrijaxError
from distrijax.models.text_encoder import TextEncoder
from distrijax.models.unet import UNet
from distrijax.models.vae import VAE

DTypes = DTypeLike | Mapping[str, DTypeLike]  # one for all, or by component's name


@dataclasses.dataclass(frozen=True)
class Components:
    """A checkpoint in memory.

    text_encoder, tokenizer: None in a refiner, which has only the second.
    tokenizer, tokenizer_2: the files of their folders; `tokenizer_folder` makes a folder of them.
    scheduler: scheduler_config.json. index: model_index.json, with flags such as force_zeros_for_empty_prompt.
    """

    unet: UNet
    vae: VAE
    text_encoder: TextEncoder | None
    text_encoder_2: TextEncoder
    tokenizer: Files | None
    tokenizer_2: Files
    scheduler: Mapping[str, Any]
    index: Mapping[str, Any]


def open_source(
    source: str | Path,
    *,
    variant: str | None = None,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
) -> Source:
    """Find a checkpoint and check it, without reading its weights.

    Args:
        source: a converted checkpoint, a diffusers folder, a hub id, or an original single file (`.safetensors`).
        variant: the ending of the weights' names in a diffusers folder or on the hub, such as "fp16".
        vae: taken instead of the checkpoint's own: a folder or hub id of a VAE or of a whole pipeline, or a file.
        tokenizer: taken instead of the checkpoint's own: a folder or hub id with CLIP's vocabulary, or with the folders
            `tokenizer` and `tokenizer_2`. For single files, which have none; the default is OpenAI's, from the hub.
        config: for single files that are neither SDXL base nor refiner: a diffusers folder or hub id.

    Raises:
        DistrijaxError: not found, damaged, of another kind, or of tensors that are not the model's; all are listed.
    """
    path = locate(source, pipeline_patterns(variant))
    other = None if vae is None else open_vae(vae, variant, config)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise DistrijaxError(_wrong_file(path))
        if variant is not None:
            raise DistrijaxError(f"{path}: is a single file and has no variant {variant!r}; give none")
        return open_single_file(path, config=config, tokenizer=tokenizer, vae=other)
    if config is not None:
        raise DistrijaxError(f"{path}: has its own configuration; config is for single files")
    if (path / MANIFEST).is_file():
        from distrijax.checkpoint.store import open_store  # orbax takes a second to import

        if variant is not None:
            raise DistrijaxError(f"{path}: is a converted checkpoint and has no variant {variant!r}; give a dtype")
        opened = open_store(path)
    else:
        opened = open_folder(path, variant)
    if other is not None:
        opened = dataclasses.replace(opened, components={**opened.components, "vae": other})
    if tokenizer is not None:
        folder = locate(tokenizer, TOKENIZER_PATTERNS)
        opened = dataclasses.replace(opened, tokenizers=sdxl_tokenizers(folder, tuple(opened.tokenizers)))
    return opened


def open_vae(source: str | Path, variant: str | None = None, config: str | Path | None = None) -> Component:
    """A VAE to take instead of a checkpoint's own; `variant` if it has that, else without."""
    patterns = [p for v in {variant, None} for name in component_patterns("vae", v) for p in (name, f"vae/{name}")]
    path = locate(source, [*patterns, MODEL_INDEX])
    if path.is_file():
        if path.suffix != ".safetensors":
            raise DistrijaxError(_wrong_file(path))
        return open_vae_file(path, config)
    if (path / MANIFEST).is_file():
        from distrijax.checkpoint.store import open_store

        return open_store(path).components["vae"]
    folder = path / "vae" if (path / "vae").is_dir() else path
    has = any((folder / name).is_file() for name in weight_names("vae", variant))
    return open_component(folder, "vae", variant if has else None)


def load(
    source: str | Path,
    *,
    dtype: DTypes | None = None,
    variant: str | None = None,
    sharding: Placement | None = None,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    progress: bool = True,
) -> Components:
    """Read a checkpoint into modules, every tensor straight to its place: the host never holds a second copy.

    Args:
        source, variant, vae, tokenizer, config: see `open_source`.
        dtype: of the weights and the arithmetic, for all components or by name, as in {"unet": jnp.bfloat16}; the
            default, also for names left out, is what the checkpoint has. An autoencoder whose config says
            `force_upcast` is read as float32 where it would be float16.
        sharding: one that fits every parameter (such as a replicated one), or a device; JAX's default otherwise.
        progress: show a bar.
    """
    opened = open_source(source, variant=variant, vae=vae, tokenizer=tokenizer, config=config)
    _check_dtypes(dtype, opened)
    placement = next(iter(jnp.zeros(()).devices())) if sharding is None else sharding
    _check_sharding(placement, opened)
    modules: dict[str, Any] = {}
    with _bar("loading", opened.nbytes, progress) as advance:
        for name, component in opened.components.items():
            wanted = dtype.get(name) if isinstance(dtype, Mapping) else dtype
            wanted = _safe(component, component.dtype if wanted is None else jnp.dtype(wanted))
            arrays: dict[str, Any] = {}
            for path, array in component.stream(wanted, placement):
                arrays[path] = array
                advance(component.tensors[path].nbytes)
            modules[name] = component.blueprint.build(arrays, wanted)
    return Components(
        **{"text_encoder": None, **modules},
        tokenizer=opened.tokenizers.get("tokenizer"),
        tokenizer_2=opened.tokenizers["tokenizer_2"],
        scheduler=opened.scheduler,
        index=opened.index,
    )


def _safe(component: Component, dtype: jnp.dtype) -> jnp.dtype:
    """fp32 for an autoencoder that overflows in fp16, as its configuration says: SDXL's own decodes to black there."""
    config = component.blueprint.config
    overflows = isinstance(config, VAEConfig) and config.force_upcast and dtype == jnp.float16
    return jnp.dtype(jnp.float32) if overflows else dtype


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: DTypeLike | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Write a checkpoint in the converted form. The target appears when it is complete, and not before.

    Args:
        source, variant, vae, tokenizer, config: see `open_source`.
        target: a folder that does not exist, or a checkpoint if `overwrite`.
        dtype: cast every tensor to it; None keeps each bit as it is.
        progress: show a bar.
    """
    from distrijax.checkpoint.store import write_store

    return _write(source, target, write_store, "converting", overwrite, progress, dtype=dtype, opening={
        "variant": variant, "vae": vae, "tokenizer": tokenizer, "config": config
    })  # fmt: skip


def export(
    source: str | Path,
    target: str | Path,
    *,
    dtype: DTypeLike | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    target_variant: str | None = None,
    progress: bool = True,
) -> Path:
    """Write a checkpoint as a diffusers folder. The target appears when it is complete, and not before.

    Args:
        source, variant, vae, tokenizer, config: see `open_source`.
        target, overwrite, dtype, progress: see `convert`.
        target_variant: the ending of the written weights' names, such as "fp16".
    """

    def write(opened: Source, folder: Path, **options: Any) -> None:
        write_folder(opened, folder, variant=target_variant, **options)

    return _write(source, target, write, "exporting", overwrite, progress, dtype=dtype, opening={
        "variant": variant, "vae": vae, "tokenizer": tokenizer, "config": config
    })  # fmt: skip


def _write(
    source: str | Path,
    target: str | Path,
    write: Callable[..., None],
    verb: str,
    overwrite: bool,
    progress: bool,
    *,
    dtype: DTypeLike | None,
    opening: dict[str, Any],
) -> Path:
    target = Path(target).expanduser().absolute()
    with appearing(target, overwrite=overwrite) as partial:
        opened = open_source(source, **opening)
        _check_dtypes(dtype, opened)
        _check_apart(target, [source, *filter(None, opening.values())])
        with _bar(verb, opened.nbytes, progress) as advance:
            write(opened, partial, dtype=dtype, progress=advance)
    return target


def _check_sharding(placement: Placement, opened: Source) -> None:
    for name, component in opened.components.items() if isinstance(placement, Sharding) else ():
        for path, tensor in component.tensors.items():
            try:
                placement.shard_shape(tensor.shape)
            except (ValueError, IndexError) as error:  # not divisible; of fewer axes
                shape = list(tensor.shape)
                raise DistrijaxError(f"sharding: {placement} does not fit {name}'s {path} {shape}") from error


def _check_apart(target: Path, sources: list[str | Path]) -> None:
    for source in sources:
        path = Path(source).expanduser().resolve()
        if path.exists() and (target.resolve() in (path, *path.parents) or path in target.resolve().parents):
            raise DistrijaxError(f"{target}: overlaps with {source}, which is being read; choose another target")


def _check_dtypes(dtype: DTypes | None, opened: Source) -> None:
    by_name = dtype if isinstance(dtype, Mapping) else {"unet": dtype}
    for name, value in by_name.items():
        if name not in ("unet", "vae", "text_encoder", "text_encoder_2"):
            raise DistrijaxError(f"dtype: there is no component {name!r}; there are {', '.join(opened.components)}")
        try:
            known = value is None or jnp.dtype(value) in (jnp.float32, jnp.bfloat16, jnp.float16)
        except TypeError:
            known = False
        if not known:
            raise DistrijaxError(f"dtype: {value!r} is not supported; choose float32, bfloat16 or float16")


def _wrong_file(path: Path) -> str:
    if path.suffix in (".ckpt", ".bin", ".pt", ".pth", ".pkl"):
        return f"{path}: is a pickle, which can run code and is never read; look for the model's .safetensors file"
    return f"{path}: is not a .safetensors file; a source is such a file, a folder or a hub id"


@contextmanager
def _bar(verb: str, total: int, show: bool) -> Iterator[Callable[[int], Any]]:
    with tqdm(total=total, unit="B", unit_scale=True, desc=verb, disable=not show) as bar:
        yield bar.update

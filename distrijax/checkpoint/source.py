"""Checkpoints of any format, with parts from elsewhere, opened and checked but not read."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict, Unpack

from distrijax.checkpoint.component import COMPONENTS, AutoencoderConfig, Checkpoint, Component
from distrijax.checkpoint.files import MANIFEST, MODEL_INDEX, SCHEDULER, read_json
from distrijax.checkpoint.folder import TOKENIZERS, Folder, present_in
from distrijax.checkpoint.hub import TOKENIZER_PATTERNS, component_patterns, local_path, locate, pipeline_patterns
from distrijax.checkpoint.known import KNOWN, published
from distrijax.checkpoint.single_file import SingleFile
from distrijax.checkpoint.tokenizers import sdxl_tokenizers
from distrijax.checks import variant_of
from distrijax.config import UNetConfig
from distrijax.config.entry import Json
from distrijax.config.unet import inpainting_channels
from distrijax.errors import DistrijaxError
from distrijax.models.autoencoder_tiny import Autoencoder
from distrijax.models.text_encoder import TextEncoder
from distrijax.models.unet import UNet
from distrijax.schedulers import Scheduler, is_name, scheduler_from_config

if TYPE_CHECKING:
    from distrijax.checkpoint.store import Store

Source: TypeAlias = "Folder | SingleFile | Store"
"""A checkpoint in some format: index, components, scheduler and tokenizers, each read when it is asked for."""


class SourceOptions(TypedDict, total=False):
    """Options for reading a checkpoint and replacing its parts; all are optional.

    A part that is an object is used as it is, and the checkpoint's own is not read. A part that is a path or hub id is
    read from there: a component's folder, a pipeline's folder, a converted checkpoint, or a `.safetensors` file with
    that component alone or a whole model.

    Attributes:
        variant: suffix of the weights' file names in a diffusers folder or on the hub, such as "fp16". Components that
            lack it are read without it.
        config: for single files that are neither SDXL base nor refiner: a diffusers folder or hub id.
        tokenizer: a folder or hub id with CLIP's vocabulary, or with the folders `tokenizer` and `tokenizer_2`, for
            single files, which have none; by default OpenAI's, from the hub.
        unet, vae, text_encoder, text_encoder_2: parts in place of the checkpoint's own.
        scheduler: the same: an object, a scheduler_config.json, a folder that has one, or a name such as "euler", which
            takes the checkpoint's options.
    """

    variant: str | None
    config: str | Path | None
    tokenizer: str | Path | None
    unet: UNet | str | Path | None
    vae: Autoencoder | str | Path | None
    text_encoder: TextEncoder | str | Path | None
    text_encoder_2: TextEncoder | str | Path | None
    scheduler: Scheduler | str | Path | None


def open_source(source: str | Path, **options: Unpack[SourceOptions]) -> Checkpoint:
    """Open a checkpoint and check it, without reading its weights.

    Args:
        source: a converted checkpoint, a diffusers folder, a hub id, an original single file (`.safetensors`), or
            `demo`, the built-in model.
        options: see `SourceOptions`.

    Raises:
        DistrijaxError: it is absent, damaged, of another kind, or its tensors do not match the model; all are listed.
    """
    if unknown := set(options) - set(SourceOptions.__annotations__):
        names = ", ".join(SourceOptions.__annotations__)
        raise DistrijaxError(f"there is no option {min(unknown)!r} for a checkpoint; the options are {names}")
    variant, config, tokenizer = options.get("variant"), options.get("config"), options.get("tokenizer")
    variant_of("variant", variant)
    given = {name: options.get(name) for name in COMPONENTS if options.get(name) is not None}
    parts = {name: open_part(name, part, variant, config) for name, part in given.items()}
    opened = _opened(locate(source, pipeline_patterns(variant, parts)), variant, config)
    for option, reason in {} if parts else opened.rejects.items():
        if options.get(option) is not None:
            raise DistrijaxError(f"{opened.path}: {reason.format(options.get(option))}")
    present = present_in(opened.index)
    if strange := set(parts) - set(present):
        raise DistrijaxError(f"{opened.path}: is a model without {min(strange)}, as refiners are; give none")
    components = {name: parts.get(name) or opened.component(name) for name in present}
    _check_channels(components, opened.path)
    named = [TOKENIZERS[name] for name in present if name in TOKENIZERS]
    if tokenizer is None:
        tokenizers = opened.tokenizers(named)
    else:
        tokenizers = sdxl_tokenizers(locate(tokenizer, TOKENIZER_PATTERNS, "tokenizer"), named)
    trained = components["unet"].trained
    scheduler = _scheduler(options.get("scheduler"), lambda: {**opened.scheduler(), **trained})
    checkpoint = Checkpoint(str(opened.path), components, opened.index, scheduler, tokenizers)
    changed = parts or options.get("scheduler") is not None or checkpoint.inpaints  # single files do not tell
    return checkpoint.with_classes() if changed else checkpoint


def find(name: str) -> Checkpoint:
    """Return one of `KNOWN`, or any source that `from_pretrained` takes, without reading weights.

    Raises:
        DistrijaxError: there is no such model, or it is not of the SDXL family.
    """
    if name in KNOWN:
        checkpoint = published(*KNOWN[name])
    elif "/" not in name and not local_path(name).exists():
        raise DistrijaxError(f"model is {name!r}; it must be {', '.join(KNOWN)}, demo, or a checkpoint that exists")
    else:
        checkpoint = open_source(name)
    return dataclasses.replace(checkpoint, name=name)


def _opened(path: Path, variant: str | None, config: str | Path | None, *, part: bool = False) -> Source:
    if path.is_file():
        return SingleFile(path, config)
    if (path / MANIFEST).is_file():
        from distrijax.checkpoint.store import Store  # orbax takes a second to import

        return Store(path)
    return Folder(path, variant, part=part)


def open_part(name: str, part: object, variant: str | None = None, config: str | Path | None = None) -> Component:
    """Return a component in place of a checkpoint's own."""
    if not isinstance(part, str | Path):
        return Component.from_module(name, part)
    patterns = [p for v in {variant, None} for file in component_patterns(name, v) for p in (file, f"{name}/{file}")]
    return _opened(locate(part, [*patterns, MODEL_INDEX]), variant, config, part=True).component(name)


def _scheduler(given: Scheduler | str | Path | None, own: Callable[[], Json]) -> Json:
    """Return a scheduler_config.json: the checkpoint's, or what is given in its place."""
    if given is None:
        return own()
    if isinstance(given, Scheduler):
        return given.config
    if not isinstance(given, str | Path):
        kind = type(given).__name__
        raise DistrijaxError(
            f"scheduler is a {kind}; it must be a Scheduler of distrijax, its name, or a path or hub id"
        )
    text = str(given)
    if (isinstance(given, str) and is_name(text)) or ("/" not in text and not Path(given).exists()):  # or the error
        return scheduler_from_config(own(), text).config
    path = locate(given, [SCHEDULER, f"scheduler/{SCHEDULER}"])
    if path.is_dir():
        path = (path / "scheduler" if (path / "scheduler").is_dir() else path) / SCHEDULER
    return read_json(path)


def _check_channels(components: Mapping[str, Component], path: Path) -> None:
    """Refuse U-Nets that read another picture beside the latents, and VAEs of other models."""
    unet, vae = components["unet"].config, components["vae"].config
    assert isinstance(unet, UNetConfig)
    assert isinstance(vae, AutoencoderConfig)
    latents = vae.latent_channels
    allowed = (latents, inpainting_channels(latents))  # without or with a mask and a masked picture
    if unet.in_channels not in allowed or unet.out_channels != latents:
        edits = ", as one for editing by instructions (InstructPix2Pix, CosXL Edit)"
        raise DistrijaxError(
            f"{path}: the U-Net has {unet.in_channels} input and {unet.out_channels} output channels"
            f"{edits if unet.in_channels == 2 * latents else ''}, but the VAE's latents have {latents}; no pipeline "
            f"here can feed it: use a U-Net with {latents}, or {allowed[1]} for inpainting"
        )

"""The location of a source: a path on this machine, or a repository on the Hugging Face hub, which is downloaded."""

import re
from collections.abc import Iterable
from pathlib import Path

from distrijax.checkpoint.files import first_line
from distrijax.checks import path_of
from distrijax.demo import MODEL
from distrijax.errors import DistrijaxError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}

TOKENIZER_PATTERNS = ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
TOKENIZER_PATTERNS += ["tokenizer/*", "tokenizer_2/*"]
CONFIG_PATTERNS = ["*.json", "*/config.json", "scheduler/*.json", *TOKENIZER_PATTERNS]


def weight_names(name: str, variant: str | None) -> tuple[str, str]:
    """Return the file names of a component's weights and of their index, if they are split."""
    stem, infix = STEMS[name], f".{variant}" if variant else ""
    return f"{stem}{infix}.safetensors", f"{stem}.safetensors.index{infix}.json"


def pipeline_patterns(variant: str | None, replaced: Iterable[str] = ()) -> list[str]:
    """Return patterns of the files that are needed from a pipeline's repository, and of no other weights."""
    patterns = ["model_index.json", "scheduler/*.json", "tokenizer/*.json", "tokenizer/*.txt"]
    patterns += ["tokenizer_2/*.json", "tokenizer_2/*.txt"]
    names = [name for name in STEMS if name not in replaced]
    return patterns + [f"{name}/{pattern}" for name in names for pattern in component_patterns(name, variant)]


def component_patterns(name: str, variant: str | None) -> list[str]:
    """Return patterns of the files that are needed from a component's folder."""
    file, index = weight_names(name, variant)
    stem = STEMS[name]
    # A part of a split file is called model-00001-of-00002.fp16.safetensors or model.fp16-00001-of-00002.safetensors.
    parts = [f"{stem}.{variant}-*-of-*.safetensors", f"{stem}-*-of-*.{variant}.safetensors"]
    return ["config.json", file, index, *(parts if variant else [f"{stem}-?????-of-?????.safetensors"])]


def local_path(source: str | Path, name: str = "source") -> Path:
    """Return the path that a source has if it is on this machine; `demo` is the built-in model, `./demo` a folder."""
    return MODEL if source == "demo" else path_of(name, source)


def locate(source: str | Path, patterns: list[str], name: str = "source") -> Path:
    """Return the path if it exists; otherwise download files that match `patterns` from the repository of that name.

    Raises:
        DistrijaxError: there is neither; the message says what to do.
    """
    path = local_path(source, name)
    if path.exists():
        return path.absolute()  # orbax reads no relative ones
    if not isinstance(source, str) or not _HUB_ID.fullmatch(source) or source.endswith((".safetensors", ".ckpt")):
        raise DistrijaxError(
            f"{source}: there is no such file or folder, and it is not a hub id of the form owner/name either"
        )
    import huggingface_hub  # slow to import, and not needed for local files
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # the client's own errors, those of its HTTP library, of sockets and of the disk
        reason = f"could not be fetched from the hub ({first_line(error)}); check the network, or give a folder's path"
        if isinstance(error, errors.RepositoryNotFoundError):
            reason = "is not a repository on the hub; check the spelling, or run `hf auth login` if it is private"
        if isinstance(error, errors.GatedRepoError):  # a kind of the former
            reason = f"has a licence: accept it at https://huggingface.co/{source}, then run `hf auth login`"
        raise DistrijaxError(f"{source}: there is no such folder here, and it {reason}") from error

"""Tokenizer folders as the bytes of their files, which transformers interprets."""

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from distrijax.errors import DistrijaxError

Files = Mapping[str, bytes]

NAMES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
PADS = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}  # the only difference between SDXL's two tokenizers


def read_tokenizer(folder: Path) -> Files:
    """Return the files of a CLIP tokenizer: vocab.json and merges.txt, or tokenizer.json, and their settings."""
    if not folder.is_dir():
        raise DistrijaxError(f"{folder}: there is no such tokenizer folder")
    try:
        files = {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}
    except OSError as error:
        raise DistrijaxError(f"{folder}: cannot be read: {error.strerror or error}") from error
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= set(files):
        present = ", ".join(files) or "none of these"
        raise DistrijaxError(f"{folder}: CLIP needs vocab.json and merges.txt, or tokenizer.json; present: {present}")
    for name, content in files.items():
        try:
            text = content.decode("utf-8")
            if name.endswith(".json") and not isinstance(json.loads(text), dict):
                raise ValueError("it must hold a JSON object")
        except ValueError as error:
            raise DistrijaxError(f"{folder / name}: is damaged ({error}); download or copy it again") from error
    return files


def write_tokenizer(files: Files, folder: Path) -> None:
    """Write the files into a new folder."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


@contextlib.contextmanager
def tokenizer_folder(files: Files) -> Iterator[Path]:
    """Yield a temporary folder with the files, for loaders that need a path."""
    with tempfile.TemporaryDirectory(prefix="distrijax-tokenizer-") as parent:
        folder = Path(parent) / "tokenizer"
        write_tokenizer(files, folder)
        yield folder


def sdxl_tokenizers(folder: Path, names: Iterable[str]) -> dict[str, Files]:
    """Return SDXL's tokenizers from a pipeline's folder, or from the one CLIP vocabulary that both share."""
    if any((folder / name).is_dir() for name in names):
        return {name: read_tokenizer(folder / name) for name in names}
    files = read_tokenizer(folder)
    return {name: _padded(files, PADS[name]) for name in names}


def _padded(files: Files, pad: str) -> Files:
    """Return the same vocabulary with another padding token."""
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77} | settings | {"pad_token": pad}
    tokens = json.loads(files.get("special_tokens_map.json", b"{}"))
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"} | tokens
    tokens["pad_token"] = pad
    new = {"tokenizer_config.json": settings, "special_tokens_map.json": tokens}
    return {**files, **{name: (json.dumps(values, indent=2) + "\n").encode() for name, values in new.items()}}

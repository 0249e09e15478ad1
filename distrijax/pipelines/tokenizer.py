"""CLIP's tokenizer: prompts in, padded token ids out. The byte-pair encoding itself is transformers' `CLIPTokenizer`."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distrijax.errors import DistrijaxError

logger = logging.getLogger(__name__)

# All that transformers reads of a CLIP tokenizer's folder; a copy of these files is the same tokenizer.
FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", None)
DEFAULT_LENGTH = 77  # of every CLIP text encoder; files older than `model_max_length` do not say it


def tokenizer_files(folder: str | Path) -> dict[str, bytes]:
    """The tokenizer's files in `folder`, by name, checked for being there and readable.

    Either `vocab.json` and `merges.txt` or `tokenizer.json` must be there. Raises DistrijaxError.
    """
    folder = Path(folder)
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    if "tokenizer.json" not in files:
        missing = [name for name in ("vocab.json", "merges.txt") if name not in files]
        if missing:
            raise DistrijaxError(
                f"{folder} holds no CLIP tokenizer: {' and '.join(missing)} missing; it needs vocab.json and merges.txt, "
                "or tokenizer.json"
            )
    for name, content in files.items():
        _check_file(folder / name, content)
    return files


class Tokenizer:
    """Prompts to token ids, padded and cut exactly as diffusers does it.

    model_max_length: number of ids of every prompt, the start and end tokens included.
    vocab_size: every id is below it.
    files: the files it was read from, by name.
    """

    def __init__(self, folder: str | Path):
        """Read a folder of a diffusers checkpoint (`tokenizer`, `tokenizer_2`). Raises DistrijaxError."""
        self.files = tokenizer_files(folder)
        try:
            self._clip = _clip_tokenizer_class().from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the reader behind it raises plain Exceptions
            raise DistrijaxError(f"{folder} holds a CLIP tokenizer that cannot be read: {error}") from error
        unknown = [
            name for name in ("bos_token", "eos_token", "pad_token") if getattr(self._clip, f"{name}_id", None) is None
        ]
        if unknown:
            raise DistrijaxError(f"{folder}: the tokenizer has no {', no '.join(unknown)}; its files are incomplete")
        length = self._clip.model_max_length
        self.model_max_length = int(length) if length < 1_000_000 else DEFAULT_LENGTH  # 1e30 means: not stated
        self.vocab_size = len(self._clip)

    def __call__(self, prompts: Sequence[str], *, max_length: int | None = None, warn: bool = True) -> np.ndarray:
        """Token ids [B, T] int32 of B prompts, with T = `max_length`, by default `model_max_length`.

        A prompt that is too long loses its end; `warn` says so, with the text that was lost.
        """
        length = self.model_max_length if max_length is None else max_length
        if length < 2:
            raise DistrijaxError(f"max_length is {length}: the start and end tokens alone need 2")
        prompts = list(prompts)
        padded = self._clip(prompts, padding="max_length", max_length=length, truncation=True)["input_ids"]
        if warn:
            whole = self._clip(prompts, truncation=False, padding=False, verbose=False)["input_ids"]
            lost = [self._clip.decode(ids[length - 1 : -1]) for ids in whole if len(ids) > length]
            if lost:
                logger.warning("prompts are cut after %d tokens, which is all CLIP can read; lost: %s", length, lost)
        return np.asarray(padded, np.int32)

    def save(self, folder: str | Path) -> None:
        """Write the files it was read from, unchanged; transformers and diffusers read them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def _check_file(path: Path, content: bytes) -> None:
    try:
        text = content.decode("utf-8")
        values = json.loads(text) if path.suffix == ".json" else None
    except ValueError as error:
        raise DistrijaxError(f"{path} is damaged: {error}") from error
    problem = _problem(path.name, text, values)
    if problem:
        raise DistrijaxError(f"{path} {problem}")


def _problem(name: str, text: str, values: Any) -> str | None:
    if name == "merges.txt":
        wrong = [
            number
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and not line.startswith("#version") and len(line.split(" ")) != 2
        ]
        return f"is damaged: line {wrong[0]} is not a pair of tokens" if wrong else None
    if not isinstance(values, dict):
        return "is damaged: it must hold a JSON object"
    if name == "vocab.json" and not all(isinstance(index, int) for index in values.values()):
        return "is damaged: it must map tokens to whole numbers"
    if name == "tokenizer.json":
        model = values.get("model")
        if not isinstance(model, dict) or not isinstance(values.get("added_tokens"), list):
            return "is damaged: `model` or `added_tokens` is missing"
        if model.get("type", "BPE") != "BPE":
            return f"is not CLIP's: its model is {model['type']}, which must be BPE"
    if name == "tokenizer_config.json" and values.get("tokenizer_class") not in CLASSES:
        return f"is not CLIP's: tokenizer_class {values['tokenizer_class']!r} is not supported, CLIPTokenizer is"
    return None


def _clip_tokenizer_class() -> Any:
    # Imported late: it takes a second, and only this file needs it. Without torch it would print that models are not
    # available, which is as intended here.
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        from transformers import CLIPTokenizer
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return CLIPTokenizer

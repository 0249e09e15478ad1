"""CLIP's tokenizer: prompts in, padded token ids out. The byte-pair encoding is transformers' own `CLIPTokenizer`."""

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distrijax.checkpoint.tokenizers import Files, read_tokenizer, tokenizer_folder
from distrijax.checks import whole_number
from distrijax.errors import DistrijaxError

logger = logging.getLogger(__name__)

CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", None)
DEFAULT_LENGTH = 77  # the length of every CLIP text encoder; old files do not state `model_max_length`


class Tokenizer:
    """A tokenizer that pads and truncates exactly as in diffusers.

    Attributes:
        files: the tokenizer's files, name to bytes, as in its folder.
        model_max_length: number of ids of every prompt, including the start and end tokens.
        vocab_size: every id is below it.
    """

    def __init__(self, source: Files | str | Path, name: str = "tokenizer"):
        """Read the tokenizer of a diffusers checkpoint.

        Args:
            source: a folder, or the files themselves: `vocab.json` and `merges.txt`, or `tokenizer.json`.
            name: name in error messages if `source` is not a folder.

        Raises:
            DistrijaxError: files are missing or damaged, or belong to another kind of tokenizer.
        """
        if isinstance(source, str | Path):
            name = str(source)
            source = read_tokenizer(Path(source))
        self.files = dict(source)
        for file, content in self.files.items():
            if problem := _problem(file, content):
                raise DistrijaxError(f"{name}: {file} {problem}")
        with tokenizer_folder(self.files) as folder:
            try:
                self._clip = _clip_tokenizer_class().from_pretrained(str(folder), local_files_only=True)
            except Exception as error:  # the Rust library behind it raises plain Exceptions
                raise DistrijaxError(f"{name}: the CLIP tokenizer cannot be read: {error}") from error
        self._check_special_tokens(name)
        length = self._clip.model_max_length
        self.model_max_length = int(length) if length < 1_000_000 else DEFAULT_LENGTH  # 1e30 means unset
        self.vocab_size = len(self._clip)
        self._draws = json.loads(self.files.get("tokenizer_config.json", b"{}")).get("draws")

    def __call__(self, prompts: Sequence[str], *, max_length: int | None = None, warn: bool = True) -> np.ndarray:
        """Return token ids [B, T] int32 of B prompts, with T = `max_length` (by default `model_max_length`).

        A prompt that is too long is truncated; with `warn`, the log says which words were lost.
        """
        # The start and end tokens alone need 2.
        length = whole_number("max_length", self.model_max_length if max_length is None else max_length, 2)
        batch = self._clip(list(prompts), padding="max_length", max_length=length, truncation=True)
        cuts = []
        for prompt in batch.encodings:
            # What truncation cuts off stays in `overflowing`, in pieces with start and end tokens of their own.
            tokens = [
                pair for part in prompt.overflowing for pair in zip(part.ids, part.special_tokens_mask, strict=True)
            ]
            if ids := [index for index, added in tokens if not added]:
                cuts.append(_shortened(self._clip.decode(ids)))
        if cuts and warn:
            logger.warning("prompts are truncated to %d tokens, all that CLIP can read; cut off: %s", length, cuts)
        return np.asarray(batch["input_ids"], np.int32)

    def advise(self, prompts: Sequence[str]) -> None:
        """Log what a model with a vocabulary of its own draws, for prompts that are empty or have words it never saw.

        Such a model says in its tokenizer_config.json what it `draws`; each word that it knows is a token.
        """
        for prompt in dict.fromkeys(prompts) if self._draws else ():
            words = dict.fromkeys(re.findall(r"[^\W\d_]+", prompt.lower()))
            unknown = ", ".join(word for word in words if len(self._clip.tokenize(word)) > 1)
            if unknown or not words:
                problem = f"never saw the words: {_shortened(unknown)}"
                logger.warning("this model %s; it draws %s", problem if unknown else "needs a prompt", self._draws)

    def _check_special_tokens(self, name: str) -> None:
        # A special token that is in none of the files would get the next free id, which no text encoder knows.
        ids = self._stated_ids()
        for kind in "bos_token", "eos_token", "pad_token":
            token = getattr(self._clip, kind)
            if token is None or ids.get(token) != getattr(self._clip, f"{kind}_id"):
                raise DistrijaxError(f"{name}: the vocabulary lacks the {kind} {token!r}; files are missing or damaged")

    def _stated_ids(self) -> dict[str, int]:
        vocab, whole, settings, added = (
            json.loads(self.files.get(file, b"{}"))
            for file in ("vocab.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json")
        )
        ids = whole["model"]["vocab"] if whole else vocab
        ids = ids | added | {token["content"]: token["id"] for token in whole.get("added_tokens", [])}
        return ids | {token["content"]: int(i) for i, token in settings.get("added_tokens_decoder", {}).items()}


def _shortened(text: str, length: int = 100) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


def _problem(file: str, content: bytes) -> str | None:
    """Return why this file cannot belong to a CLIP tokenizer, or None if it can."""
    try:
        text = content.decode("utf-8")
        values = json.loads(text) if file.endswith(".json") else None
    except ValueError as error:
        return f"is damaged ({error}); download or copy it again"
    if file == "merges.txt":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip() and not line.startswith("#version") and len(line.split()) != 2:
                return f"is damaged: line {number} is not a pair of tokens"
        return None
    if not isinstance(values, dict):
        return "is damaged: it must hold a JSON object"
    if file == "vocab.json" and not all(type(index) is int for index in values.values()):
        return "is damaged: it must map tokens to whole numbers"
    if file == "tokenizer.json":
        model = values.get("model")
        if not isinstance(model, dict) or not isinstance(values.get("added_tokens"), list):
            return "is damaged: `model` or `added_tokens` is missing"
        if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
            return f"is not CLIP's: its model must be 'BPE', not {model.get('type')!r}"
    if file == "tokenizer_config.json" and values.get("tokenizer_class") not in CLASSES:
        return f"is not CLIP's: tokenizer_class {values['tokenizer_class']!r} is not supported, CLIPTokenizer is"
    return None


def _clip_tokenizer_class() -> Any:
    # Imported late because it takes a second. Without torch, transformers warns on import that its models are missing
    # unless this variable is set; only the tokenizer is needed here.
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

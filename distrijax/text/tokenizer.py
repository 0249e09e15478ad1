"""CLIP's tokenizer: prompts in, padded token ids out. The byte-pair encoding is transformers' own `CLIPTokenizer`."""

import copy
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distrijax.checkpoint.tokenizers import Files, read_tokenizer, tokenizer_folder
from distrijax.checks import whole_number
from distrijax.config import entry
from distrijax.config.entry import Json
from distrijax.errors import DistrijaxError
from distrijax.text.vocabulary import vocabulary_problem

logger = logging.getLogger(__name__)

# CLIP reads the words from the left: a prompt that is padded or cut there would be another one.
ENTRIES = {
    "model_max_length": entry.optional(entry.whole(2, 10**31)),  # 10**30 means unset
    "padding_side": entry.choice("right", None),
    "tokenizer_class": entry.choice("CLIPTokenizer", "CLIPTokenizerFast", None),
    "truncation_side": entry.choice("right", None),
}
DEFAULT_LENGTH = 77  # the length of every CLIP text encoder; old files do not state `model_max_length`


class Tokenizer:
    """A tokenizer that pads and truncates exactly as in diffusers.

    Attributes:
        files: the tokenizer's files, name to bytes, as in its folder.
        model_max_length: number of ids of every prompt, including the start and end tokens.
        vocab_size: every id of the vocabulary is below it; those of added tokens follow.
        added: tokens of textual inversions, in the order of their ids, and their vectors [D] for the text encoder.
        begin, end, pad: the ids that begin a prompt, end it, and fill it up.
        last: the highest id of the vocabulary, without tokens that were added to it.
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
        values = {file: json.loads(text) for file, text in self.files.items() if file.endswith(".json")}
        try:
            entry.check("tokenizer_config.json", values.get("tokenizer_config.json", {}), ENTRIES)
            self._check_vocabulary(values)
            with tokenizer_folder(self.files) as folder:
                self._clip = self._original = _clip_tokenizer_class().from_pretrained(
                    str(folder), local_files_only=True
                )
            self._check_special_tokens(values)
        except DistrijaxError as error:
            raise DistrijaxError(f"{name}: {error}") from error
        except Exception as error:  # a value of another type, and plain Exceptions of the Rust library
            raise DistrijaxError(f"{name}: the CLIP tokenizer cannot be read: {error!r}") from error
        length = self._clip.model_max_length
        self.model_max_length = int(length) if length < 1_000_000 else DEFAULT_LENGTH  # 1e30 means unset
        self.vocab_size = len(self._clip)
        self.begin, self.end = int(self._clip.bos_token_id), int(self._clip.eos_token_id)
        self.pad, self.last = int(self._clip.pad_token_id), int(self._clip.vocab_size) - 1
        self.added: dict[str, np.ndarray] = {}
        self._draws = values.get("tokenizer_config.json", {}).get("draws")
        self._speaks = True

    def __call__(self, prompts: Sequence[str], *, max_length: int | None = None, warn: bool = True) -> np.ndarray:
        """Return token ids [B, T] int32 of B prompts, with T = `max_length` (by default `model_max_length`).

        A prompt that is too long is truncated; with `warn`, the log says which words were lost.
        """
        # The start and end tokens alone need 2.
        length = whole_number("max_length", self.model_max_length if max_length is None else max_length, 2)
        texts = [self._expanded(prompt) for prompt in prompts]
        batch = self._clip(texts, padding="max_length", max_length=length, truncation=True)
        cuts = []
        for prompt in batch.encodings if warn and self._speaks else ():
            # What truncation cuts off stays in `overflowing`, in pieces with start and end tokens of their own.
            tokens = [
                pair for part in prompt.overflowing for pair in zip(part.ids, part.special_tokens_mask, strict=True)
            ]
            if ids := [index for index, added in tokens if not added]:
                cuts.append(_shortened(self._clip.decode(ids)))
        if cuts:
            logger.warning("prompts are truncated to %d tokens, all that CLIP can read; cut off: %s", length, cuts)
        return np.asarray(batch["input_ids"], np.int32)

    def words(self, text: str) -> tuple[list[int], list[str]]:
        """Return all ids of a text and what they stand for, without the tokens that begin and end a prompt."""
        ids = self._clip(self._expanded(text), truncation=False, verbose=False)["input_ids"][1:-1]
        return ids, self._clip.convert_ids_to_tokens(ids)

    def quiet(self) -> "Tokenizer":
        """Return this tokenizer, but one that logs nothing."""
        other = copy.copy(self)
        other._speaks = False
        return other

    def knows(self, token: str) -> bool:
        """Return whether a text that is this token has an id of its own."""
        return token in self._clip.get_vocab()

    def set_added(self, tokens: Mapping[str, np.ndarray]) -> None:
        """Replace the tokens of textual inversions, whose ids begin at `vocab_size`; `files` stay as they are."""
        self._clip = self._original
        if tokens:
            self._clip = copy.deepcopy(self._original)
            self._clip.add_tokens(list(tokens))
        self.added = dict(tokens)

    def _expanded(self, text: str) -> str:
        """Return a text with "token token_1 token_2" for a token of several vectors, by diffusers' rules."""
        for token in dict.fromkeys(self._clip.tokenize(text)) if self.added else ():
            if token in self.added:
                several = [token]
                while f"{token}_{len(several)}" in self.added:
                    several.append(f"{token}_{len(several)}")
                text = text.replace(token, " ".join(several))
        return text

    def advise(self, prompts: Sequence[str]) -> None:
        """Log what a model with a vocabulary of its own draws, for prompts that are empty or have words it never saw.

        Such a model says in its tokenizer_config.json what it `draws`; each word that it knows is a token.
        """
        for prompt in dict.fromkeys(prompts) if self._draws and self._speaks else ():
            if any(token in prompt for token in self.added):  # what such a word means is not the model's own
                continue
            words = dict.fromkeys(re.findall(r"[^\W\d_]+", prompt.lower()))
            unknown = ", ".join(word for word in words if len(self._clip.tokenize(word)) > 1)
            if unknown or not words:
                problem = f"never saw the words: {_shortened(unknown)}"
                logger.warning("this model %s; it draws %s", problem if unknown else "needs a prompt", self._draws)

    def _check_vocabulary(self, values: Json) -> None:
        for file in ("vocab.json", "tokenizer.json"):
            if file not in values:
                continue
            if file == "vocab.json":
                vocabulary, lines = values[file], self.files.get("merges.txt", b"").decode().split("\n")
                merges = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
            else:
                model = values[file]["model"]
                if model.get("type", "BPE") != "BPE":
                    raise DistrijaxError(f"{file} is not CLIP's: its model must be 'BPE', not {model.get('type')!r}")
                vocabulary = model["vocab"]
                merges = [pair.split() if isinstance(pair, str) else pair for pair in model["merges"]]
            if wrong := next((pair for pair in merges if len(pair) != 2), None):
                raise DistrijaxError(f"{file} is damaged: the merge {' '.join(wrong)!r} is not a pair of tokens")
            if not all(type(number) is int for number in vocabulary.values()):
                raise DistrijaxError(f"{file} is damaged: it must map tokens to whole numbers")
            if problem := vocabulary_problem(vocabulary, [(first, second) for first, second in merges]):
                raise DistrijaxError(f"{file} and its merges do not belong together: {problem}")

    def _check_special_tokens(self, values: Json) -> None:
        # A special token that is in none of the files would get the next free id, which no text encoder knows.
        whole, settings = values.get("tokenizer.json"), values.get("tokenizer_config.json", {})
        ids = dict(whole["model"]["vocab"] if whole else values["vocab.json"]) | values.get("added_tokens.json", {})
        ids |= {token["content"]: token["id"] for token in (whole or {}).get("added_tokens", [])}
        ids |= {token["content"]: int(i) for i, token in settings.get("added_tokens_decoder", {}).items()}
        for kind in "bos_token", "eos_token", "pad_token":
            token = getattr(self._clip, kind)
            if token is None or ids.get(token) != getattr(self._clip, f"{kind}_id"):
                raise DistrijaxError(f"the vocabulary lacks the {kind} {token!r}; files are missing or damaged")


def _shortened(text: str, length: int = 100) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


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

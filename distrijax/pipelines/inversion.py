"""Textual inversion: new tokens whose vectors come from files, by diffusers' rules.

The vectors are arguments of the compiled programs beside the weights, so that loading and unloading compiles nothing,
and what is saved is the checkpoint as it was.
"""

from typing import Any

import numpy as np

from distrijax.checkpoint.inversion import read_inversion
from distrijax.checks import instance_of
from distrijax.errors import DistrijaxError
from distrijax.models.text_encoder import TextEncoder
from distrijax.text.tokenizer import Tokenizer

Tokens = dict[str, np.ndarray]

_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


class TextualInversion:
    """The methods that load textual inversions. Tokens belong to tokenizers, which several pipelines may share."""

    text_encoder: TextEncoder | None
    text_encoder_2: TextEncoder | None
    tokenizer: Tokenizer | None
    tokenizer_2: Tokenizer | None

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Any,
        token: str | list[str] | None = None,
        tokenizer: Tokenizer | None = None,
        text_encoder: TextEncoder | None = None,
        *,
        weight_name: str | None = None,
    ) -> None:
        """Load new tokens, which prompts and negative prompts may then have.

        A token of several vectors is written once, and takes as many places of the 77 that a prompt has.

        Args:
            pretrained_model_name_or_path: a `.safetensors` file, a folder or hub id with one, a dictionary of arrays,
                an array [N, D] or [D], or a list of these. Files for both text encoders are taken as they are.
            token: what to write in a prompt; by default what the file calls it, or the file's name. A list has one for
                each of a list of files, or for each vector of a single array.
            tokenizer, text_encoder: those of this pipeline to load it for. By default the file says it, or the vector
                has the width of only one.
            weight_name: the file in a folder or repository.

        Raises:
            DistrijaxError: a file cannot be used or a token is taken; nothing is then changed.
        """
        sources: list[Any] = [pretrained_model_name_or_path]
        if isinstance(pretrained_model_name_or_path, list) and not _numeric(pretrained_model_name_or_path):
            sources = pretrained_model_name_or_path
        names = token if isinstance(token, list) else [token] * len(sources)
        for name in names:
            if name is not None and (not isinstance(name, str) or not name.strip() or name != name.strip()):
                raise DistrijaxError(f"token is {name!r}; it must be a word, such as '<cat-toy>'")
        only = self._network(tokenizer, text_encoder)
        changed: dict[str, Tokens] = {}
        read = [read_inversion(source, weight_name) for source in sources]
        if isinstance(token, list) and len(read) == 1 and len(token) > 1:  # a token for each vector
            read = read[0].each()
        if len(read) != len(names):
            raise DistrijaxError(f"token has {len(names)} entries for {len(read)} embeddings; give one for each")
        for name, found in zip(names, read, strict=True):
            for kind, vectors in found.of.items():
                network = only if kind is None or (only is not None and len(found.of) == 1) else kind
                if only is not None and network != only:
                    continue
                network = network or self._as_wide(vectors.shape[1])
                if len(found.of) > 1 and getattr(self, network) is None:  # a refiner has only one of them
                    continue
                self._add(changed, network, name or found.token, vectors)
        for network, tokens in changed.items():
            getattr(self, _TOKENIZERS[network]).set_added(tokens)

    def unload_textual_inversion(
        self,
        tokens: str | list[str] | None = None,
        tokenizer: Tokenizer | None = None,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        """Forget tokens, by default all; both text encoders are then what they were.

        Args:
            tokens: names of tokens, with all vectors of each.
            tokenizer, text_encoder: those of this pipeline to forget them in; by default all.
        """
        wanted = [tokens] if isinstance(tokens, str) else tokens
        if wanted is not None and not (isinstance(wanted, list) and all(isinstance(each, str) for each in wanted)):
            raise DistrijaxError(f"tokens is {tokens!r}; it must be a string or a list of strings")
        only = self._network(tokenizer, text_encoder)
        networks = [name for name in _TOKENIZERS if only in (None, name) and self._tokens(name) is not None]
        found = set()
        for name in networks:
            kept = dict(self._tokens(name) or {})
            for each in list(kept) if wanted is None else [each for each in wanted if each in kept]:
                found.add(each)
                for part in _several(each, kept):
                    kept.pop(part, None)
            getattr(self, _TOKENIZERS[name]).set_added(kept)
        if wanted is not None and (missing := [each for each in wanted if each not in found]):
            known = ", ".join(dict.fromkeys(each for name in networks for each in self._tokens(name) or {})) or "none"
            raise DistrijaxError(f"tokens has {', '.join(missing)}, but what is loaded is: {known}")

    def _tokens(self, network: str) -> Tokens | None:
        tokenizer = getattr(self, _TOKENIZERS[network])
        return None if tokenizer is None else tokenizer.added

    def _network(self, tokenizer: object, text_encoder: object) -> str | None:
        """Return the name of the text encoder that is given, or whose tokenizer is."""
        for argument, given, names in (
            ("tokenizer", tokenizer, _TOKENIZERS.values()),
            ("text_encoder", text_encoder, _TOKENIZERS),
        ):
            if given is not None and not any(given is getattr(self, name) for name in names):
                raise DistrijaxError(f"{argument} is {given!r}; it must be this pipeline's {' or '.join(names)}")
        found = {
            network
            for network, name in _TOKENIZERS.items()
            for given, own in ((tokenizer, getattr(self, name)), (text_encoder, getattr(self, network)))
            if given is not None and given is own
        }
        if len(found) > 1:
            raise DistrijaxError("tokenizer and text_encoder belong to different text encoders; give one of them")
        return next(iter(found), None)

    def _as_wide(self, width: int) -> str:
        widths = {
            name: encoder.config.hidden_size for name in _TOKENIZERS if (encoder := getattr(self, name)) is not None
        }
        for name, size in widths.items():
            if size == width:
                return name
        has = " and ".join(f"{name} has {size}" for name, size in widths.items())
        raise DistrijaxError(f"the embedding has {width} numbers, but {has}: it is for another model")

    def _add(self, changed: dict[str, Tokens], network: str, token: str | None, vectors: np.ndarray) -> None:
        if token is None:
            raise DistrijaxError("the embedding has no name; say with token what to write in a prompt")
        encoder, tokenizer = getattr(self, network), getattr(self, _TOKENIZERS[network])
        instance_of(network, encoder, TextEncoder, "a text encoder, which this pipeline lacks")
        instance_of(_TOKENIZERS[network], tokenizer, Tokenizer, "a tokenizer, which this pipeline lacks")
        if vectors.shape[1] != encoder.config.hidden_size:
            raise DistrijaxError(
                f"the embedding of {token!r} has {vectors.shape[1]} numbers, but {network} has "
                f"{encoder.config.hidden_size}: it is for another model"
            )
        tokens = changed.setdefault(network, dict(tokenizer.added))
        names = [token, *(f"{token}_{i}" for i in range(1, len(vectors)))]
        for name in [*names, f"{token}_1"]:
            if name in tokens or tokenizer.knows(name):
                raise DistrijaxError(
                    f"the token {name!r} is known already; choose another one with token, or unload it"
                )
        tokens.update(zip(names, vectors, strict=True))


def _several(token: str, tokens: Tokens) -> list[str]:
    """Return the names of all vectors of a token."""
    names = [token]
    while f"{token}_{len(names)}" in tokens:
        names.append(f"{token}_{len(names)}")
    return names


def _numeric(value: list[Any]) -> bool:
    """Return whether a list is a vector, or vectors, and not a list of files."""
    return bool(value) and all(isinstance(each, int | float) for each in value)

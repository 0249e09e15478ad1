"""Token ids for the text encoders, what ids past a vocabulary mean, and whether all of it fits together."""

from collections.abc import Sequence

import numpy as np

from distrijax.errors import DistrijaxError
from distrijax.models.text_encoder import Added, TextEncoder
from distrijax.text.tokenizer import Tokenizer

SPARE_VECTORS = 64
"""Vectors of added tokens that a text encoding program takes at least."""


def added_vectors(tokenizer: Tokenizer, encoder: TextEncoder) -> Added:
    """Return the vectors of the tokenizer's added tokens, filled up with zeros, so that one more compiles nothing."""
    count = SPARE_VECTORS
    while count < len(tokenizer.added):
        count *= 2
    vectors = np.zeros((count, encoder.config.hidden_size), encoder.dtype)
    for i, (token, vector) in enumerate(tokenizer.added.items()):
        if len(vector) != vectors.shape[1]:
            raise DistrijaxError(
                f"the embedding of {token!r} has {len(vector)} numbers, but those of this text encoder have "
                f"{vectors.shape[1]}; unload it, or load it for the other text encoder"
            )
        vectors[i] = vector
    return Added(np.int32(tokenizer.vocab_size), vectors)  # type: ignore[arg-type]  # still on the host


def check_encoders(tokenizers: Sequence[Tokenizer], encoders: Sequence[TextEncoder]) -> None:
    """Check that the encoders can read a prompt, and that the tokenizers are theirs."""
    if not encoders:
        raise DistrijaxError("there is no text encoder to read a prompt with; give prompt_embeds instead")
    if not any(encoder.config.with_projection for encoder in encoders):
        raise DistrijaxError(
            "no text encoder has a projection (CLIPTextModelWithProjection), which the pooled embeddings need; "
            "give prompt_embeds and pooled_prompt_embeds instead"
        )
    lengths = [tokenizer.model_max_length for tokenizer in tokenizers]
    if len(set(lengths)) > 1:
        raise DistrijaxError(f"the tokenizers differ in model_max_length: {lengths}; they must be equal")


def token_ids(tokenizers: Sequence[Tokenizer], texts: list[list[str]], length: int | None) -> tuple[np.ndarray, ...]:
    """Return the ids [B, length] of each tokenizer's text; a single tokenizer reads only the first text."""
    return tuple(  # what both tokenizers cut off is said once
        tokenizer(text, max_length=length, warn=text not in texts[:i])
        for i, (tokenizer, text) in enumerate(zip(tokenizers, texts, strict=False))
    )


def check_ids(tokenizers: Sequence[Tokenizer], encoders: Sequence[TextEncoder], ids: tuple[np.ndarray, ...]) -> None:
    """Check that the encoders have these ids [B, T], and as many positions."""
    for tokenizer, tokens, encoder in zip(tokenizers, ids, encoders, strict=True):
        limit, known = encoder.config.max_position_embeddings, encoder.config.vocab_size
        if tokens.shape[1] > limit:
            raise DistrijaxError(
                f"a prompt of {tokens.shape[1]} tokens is too long for a text encoder with {limit} positions"
            )
        highest = np.where(tokens < tokenizer.vocab_size, tokens, 0).max()  # but for those of textual inversions
        if highest >= known:
            raise DistrijaxError(
                f"the tokenizer produced the id {highest}, but its text encoder has {known} tokens; "
                "the two do not belong together"
            )
        end = tokenizer.last if encoder.config.eos_token_id == 2 else encoder.config.eos_token_id  # see the config
        if encoder.config.with_projection and tokenizer.end != end:
            raise DistrijaxError(
                f"the tokenizer ends a prompt with the id {tokenizer.end}, but its text encoder reads the pooled state "
                f"at {end}; the two do not belong together"
            )

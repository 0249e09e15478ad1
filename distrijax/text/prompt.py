"""Text conditioning from prompts, by the rules of diffusers' `StableDiffusionXLPipeline.encode_prompt`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, DTypeLike

from distrijax.checks import array_of, whole_number
from distrijax.errors import DistrijaxError
from distrijax.models.text_encoder import TextEncoder
from distrijax.text.tokenizer import Tokenizer

Prompt = str | list[str]
Embeds = Array | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class PromptInputs:
    """The text arguments of a call; raises DistrijaxError if they are inconsistent.

    A list has one entry per prompt; a string applies to all prompts.

    Attributes:
        prompt: what the pictures should show.
        prompt_2: the same for the second text encoder; `prompt` if it is empty.
        negative_prompt, negative_prompt_2: what to guide away from, likewise.
        num_images_per_prompt: pictures per prompt, adjacent in the batch.
        clip_skip: layers to skip below the penultimate one, which SDXL reads. The negative prompt skips none.
        prompt_embeds, negative_prompt_embeds: [prompts, T, D], in place of the texts.
        pooled_prompt_embeds, negative_pooled_prompt_embeds: [prompts, P].
    """

    prompt: Prompt | None = None
    prompt_2: Prompt | None = None
    negative_prompt: Prompt | None = None
    negative_prompt_2: Prompt | None = None
    num_images_per_prompt: int = 1
    clip_skip: int | None = None
    prompt_embeds: ArrayLike | None = None
    negative_prompt_embeds: ArrayLike | None = None
    pooled_prompt_embeds: ArrayLike | None = None
    negative_pooled_prompt_embeds: ArrayLike | None = None

    def __post_init__(self) -> None:
        if self.prompt is None and self.prompt_embeds is None:
            raise DistrijaxError("there is no prompt: give prompt or prompt_embeds")
        for name in "prompt", "prompt_2", "negative_prompt", "negative_prompt_2":
            self._check_text(name)
        for name in "prompt_embeds", "negative_prompt_embeds":
            pooled_name = name.replace("prompt", "pooled_prompt")
            if getattr(self, name) is not None and getattr(self, pooled_name) is None:
                raise DistrijaxError(f"{name} needs {pooled_name} beside it, made by the same text encoder")
            for part, axes in (name, "[B, T, D]"), (pooled_name, "[B, P]"):
                if getattr(self, part) is None:
                    continue
                embeds = array_of(part, getattr(self, part))
                object.__setattr__(self, part, embeds)
                if embeds.ndim != axes.count(",") + 1 or len(embeds) != self.count:
                    rule = f"{axes} with B = {self.count} prompts" if self.prompt is not None else axes
                    raise DistrijaxError(f"{part} has the shape {embeds.shape}; it must be {rule}")
        count = whole_number("num_images_per_prompt", self.num_images_per_prompt, least=1)
        skip = 0 if self.clip_skip is None else whole_number("clip_skip", self.clip_skip, least=-1)
        for name, value in (("num_images_per_prompt", count), ("clip_skip", skip)):
            object.__setattr__(self, name, value)

    @property
    def count(self) -> int:
        """Number of prompts."""
        if self.prompt is None:
            return (*np.shape(self.prompt_embeds), 0)[0]  # type: ignore[arg-type]
        return 1 if isinstance(self.prompt, str) else len(self.prompt)

    @property
    def batch(self) -> int:
        """Number of pictures, which is known before anything is encoded."""
        return self.count * self.num_images_per_prompt

    def _check_text(self, name: str) -> None:
        text, embeds_name = getattr(self, name), f"{name.removesuffix('_2')}_embeds"
        if text is None:
            return
        if getattr(self, embeds_name) is not None:
            raise DistrijaxError(f"both {name} and {embeds_name} are given; they are mutually exclusive")
        if isinstance(text, str):
            return
        if not isinstance(text, list) or not all(isinstance(entry, str) for entry in text):
            raise DistrijaxError(f"{name} is {text!r}; it must be a string or a list of strings")
        if not text and name == "prompt":
            raise DistrijaxError("prompt is an empty list; give at least one prompt")
        if text and len(text) != self.count:  # an empty list counts as none, as in diffusers
            raise DistrijaxError(
                f"{name} has {len(text)} entries for {self.count} prompts; give one for each, or a string for all"
            )


class PromptEmbeds(NamedTuple):
    """Text conditioning of B pictures, on the host: the negative branch before the prompt's, or the prompt's alone.

    Attributes:
        context: [branches, B, T, D], penultimate hidden states of all text encoders, side by side.
        pooled: [branches, B, P], end-of-text state of the first text encoder with a projection (in SDXL, the last).
    """

    context: np.ndarray
    pooled: np.ndarray


def encode_ids(encoders: tuple[TextEncoder, ...], ids: tuple[Array, ...], clip_skip: int = 0) -> tuple[Array, Array]:
    """Return the context [B, T, D] and the pooled vector [B, P] of token ids.

    Args:
        encoders: one or two text encoders, of which one has a projection.
        ids: [B, T] for each encoder.
        clip_skip: layers to skip below the penultimate one (-1 reads the last). XLA drops the layers above.
    """
    encodings = [encoder(i) for encoder, i in zip(encoders, ids, strict=True)]
    projects = [encoder.config.with_projection for encoder in encoders]
    context = jnp.concatenate([encoding.hidden_states[-(clip_skip + 2)] for encoding in encodings], axis=-1)
    return context, encodings[projects.index(True)].pooled


def encode_prompt(
    prompts: PromptInputs,
    tokenizers: Sequence[Tokenizer],
    encoders: Sequence[TextEncoder],
    *,
    guided: bool,
    force_zeros_for_empty_prompt: bool,
    encode: Callable[..., tuple[Array, Array]] = encode_ids,
) -> PromptEmbeds:
    """Return the text conditioning of `prompts.batch` pictures, in the dtype of the text encoders.

    Args:
        tokenizers, encoders: the base model's two, or the refiner's one, which ignores `prompt_2`.
        guided: add the negative branch.
        force_zeros_for_empty_prompt: without a `negative_prompt`, the negative embeddings are zeros, even with a
            `negative_prompt_2`; otherwise they are those of an empty text.
        encode: replacement for `encode_ids`, such as a compiled program; called at most once per branch.

    Raises:
        DistrijaxError: the prompts do not fit these tokenizers and encoders.
    """
    if len(tokenizers) != len(encoders):
        raise DistrijaxError(f"{len(tokenizers)} tokenizers for {len(encoders)} text encoders; each needs its own")
    dtype = encoders[-1].dtype if encoders else None

    def branch(kind: str, first: Prompt, second: Prompt | None, skip: int, length: int | None) -> tuple[Embeds, Embeds]:
        """Return the context and the pooled vector: the caller's, or those of the two texts."""
        names = f"{kind}prompt_embeds", f"{kind}pooled_prompt_embeds"
        embeds, pooled = (_as_dtype(getattr(prompts, name), dtype) for name in names)
        if embeds is not None and pooled is not None:
            return embeds, pooled
        texts = [[text] * prompts.count if isinstance(text, str) else text for text in (first, second or first)]
        ids = _token_ids(tokenizers, encoders, texts, length)
        layers = min(encoder.config.num_hidden_layers for encoder in encoders)
        skip = whole_number("clip_skip", skip, least=-1, most=layers - 1)
        context, encoded = encode(tuple(encoders), ids, clip_skip=skip)
        return context, encoded if pooled is None else pooled

    for tokenizer in tokenizers[:1] if prompts.prompt is not None else ():
        tokenizer.advise([prompts.prompt] if isinstance(prompts.prompt, str) else prompts.prompt or [])
    context, pooled = branch("", prompts.prompt or "", prompts.prompt_2, prompts.clip_skip or 0, None)
    branches = [(context, pooled)]
    if guided:
        negative = prompts.negative_prompt
        if force_zeros_for_empty_prompt and negative is None and prompts.negative_prompt_embeds is None:
            branches.insert(0, (np.zeros(context.shape, context.dtype), np.zeros(pooled.shape, pooled.dtype)))
        else:  # diffusers pads or cuts the negative prompt to the length of the prompt's embeddings
            branches.insert(0, branch("negative_", negative or "", prompts.negative_prompt_2, 0, context.shape[1]))
    # Wait for results only now that both branches are dispatched, and fetch each once.
    parts = []
    for name, part in zip(("prompt_embeds", "pooled_prompt_embeds"), zip(*branches, strict=True), strict=True):
        if part[0].shape != part[-1].shape:
            raise DistrijaxError(
                f"{name} is {part[-1].shape} but negative_{name} is {part[0].shape}; they must be equal"
            )
        stacked = np.stack([np.asarray(array) for array in part])
        parts.append(np.repeat(stacked, prompts.num_images_per_prompt, axis=1))
    return PromptEmbeds(*parts)


def _as_dtype(embeds: ArrayLike | None, dtype: DTypeLike | None) -> np.ndarray | None:
    if embeds is None:
        return None
    array = np.asarray(embeds)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype) if dtype is None else dtype)


def _token_ids(
    tokenizers: Sequence[Tokenizer], encoders: Sequence[TextEncoder], texts: list[list[str]], length: int | None
) -> tuple[np.ndarray, ...]:
    """Return the ids [B, length] of each tokenizer's text; a single tokenizer reads only the first text."""
    if not encoders:
        raise DistrijaxError("there is no text encoder to read a prompt with; give prompt_embeds instead")
    if not any(encoder.config.with_projection for encoder in encoders):
        raise DistrijaxError(
            "no text encoder has a projection (CLIPTextModelWithProjection), which the pooled embeddings need; "
            "give prompt_embeds and pooled_prompt_embeds instead"
        )
    ids = tuple(  # what both tokenizers cut off is said once
        tokenizer(text, max_length=length, warn=text not in texts[:i])
        for i, (tokenizer, text) in enumerate(zip(tokenizers, texts, strict=False))
    )
    for tokenizer, tokens, encoder in zip(tokenizers, ids, encoders, strict=True):
        limit, known = encoder.config.max_position_embeddings, encoder.config.vocab_size
        if tokens.shape[1] > limit:
            raise DistrijaxError(
                f"a prompt of {tokens.shape[1]} tokens is too long for a text encoder with {limit} positions"
            )
        if tokens.max() >= known:
            raise DistrijaxError(
                f"the tokenizer produced the id {tokens.max()}, but its text encoder has {known} tokens; "
                "the two do not belong together"
            )
        end = tokenizer.last if encoder.config.eos_token_id == 2 else encoder.config.eos_token_id  # see the config
        if encoder.config.with_projection and tokenizer.end != end:
            raise DistrijaxError(
                f"the tokenizer ends a prompt with the id {tokenizer.end}, but its text encoder reads the pooled state "
                f"at {end}; the two do not belong together"
            )
    lengths = [tokens.shape[1] for tokens in ids]
    if len(set(lengths)) > 1:
        raise DistrijaxError(f"the tokenizers differ in model_max_length: {lengths}; they must be equal")
    return ids

"""From prompts to what the U-Net is conditioned on, as `StableDiffusionXLPipeline.encode_prompt` of diffusers does it.

Two stages (tokenizer and text encoder) for the base model, one for the refiner. Encoding is one compiled program per
batch size and clip_skip: encoders and ids are its arguments, so that neither prompts nor weights recompile.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from distrijax.errors import DistrijaxError
from distrijax.models.text_encoder import TextEncoder
from distrijax.pipelines.tokenizer import Tokenizer

Prompt = str | list[str]


class PromptEmbeds(NamedTuple):
    """Text conditioning of B pictures.

    context: [B, T, D], penultimate hidden states of all encoders, side by side.
    pooled: [B, P], the projected end-of-text state of the encoder that has a projection (in SDXL, the last).
    """

    context: Array
    pooled: Array


@functools.partial(jax.jit, static_argnames="clip_skip")
def encode_ids(encoders: tuple[TextEncoder, ...], ids: tuple[Array, ...], clip_skip: int = 0) -> tuple[Array, Array]:
    """Context [B, T, D] and pooled vector [B, P] of token ids [B, T], one array of them for each encoder.

    clip_skip: layers left out below the penultimate one, which is what SDXL reads (-1: the last layer is read). Layers
    that are not read are not computed: XLA drops them.
    The pooled vector is that of the first encoder that has a projection.
    """
    encodings = [encoder(i) for encoder, i in zip(encoders, ids, strict=True)]
    projects = [encoder.config.with_projection for encoder in encoders]
    context = jnp.concatenate([encoding.hidden_states[-(clip_skip + 2)] for encoding in encodings], axis=-1)
    return context, encodings[projects.index(True)].pooled


def encode_prompt(
    tokenizers: Sequence[Tokenizer],
    encoders: Sequence[TextEncoder],
    prompt: Prompt | None = None,
    prompt_2: Prompt | None = None,
    *,
    negative_prompt: Prompt | None = None,
    negative_prompt_2: Prompt | None = None,
    num_images_per_prompt: int = 1,
    guided: bool = True,
    clip_skip: int | None = None,
    force_zeros_for_empty_prompt: bool = True,
    prompt_embeds: ArrayLike | None = None,
    negative_prompt_embeds: ArrayLike | None = None,
    pooled_prompt_embeds: ArrayLike | None = None,
    negative_pooled_prompt_embeds: ArrayLike | None = None,
    encode: Callable[..., tuple[Array, Array]] = encode_ids,
) -> tuple[PromptEmbeds, PromptEmbeds | None]:
    """Conditional and negative embeddings of B = prompts x num_images_per_prompt pictures; pictures of a prompt adjoin.

    tokenizers, encoders: both of the base model, or the refiner's one (then `prompt_2` is not read).
    guided: without guidance no negative embeddings are needed, and None takes their place.
    The rest has diffusers' meaning, its fine print included: `prompt_2` stands in for an empty one by `prompt`;
    without `negative_prompt` the negative embeddings are zeros where `force_zeros_for_empty_prompt` says so, whatever
    `negative_prompt_2` is; clip_skip does not apply to the negative prompt.
    Embeddings that are given are used as they are, in the encoders' dtype.
    encode: stands in for `encode_ids`, for instance a program compiled ahead of time.
    Raises DistrijaxError for arguments that do not fit together.
    """
    check_prompts(
        prompt,
        prompt_2,
        negative_prompt,
        negative_prompt_2,
        prompt_embeds,
        negative_prompt_embeds,
        pooled_prompt_embeds,
        negative_pooled_prompt_embeds,
        num_images_per_prompt,
    )
    stages = _Stages(tokenizers, encoders, encode)
    context, pooled = stages.cast(prompt_embeds), stages.cast(pooled_prompt_embeds)
    if context is None:
        assert prompt is not None
        prompts = _as_list(prompt, 1)
        count = len(prompts)
        context, own = stages.encode([prompts, _as_list(prompt_2 or prompts, 1)], clip_skip=clip_skip or 0)
        pooled = own if pooled is None else pooled
    count = context.shape[0]
    assert pooled is not None
    _check_shapes("prompt_embeds", context, "pooled_prompt_embeds", pooled, count)
    conditional = PromptEmbeds(context, pooled)

    negative = None
    if guided:
        n_context, n_pooled = stages.cast(negative_prompt_embeds), stages.cast(negative_pooled_prompt_embeds)
        if n_context is None and negative_prompt is None and force_zeros_for_empty_prompt:
            n_context, n_pooled = jnp.zeros_like(context), jnp.zeros_like(pooled)
        elif n_context is None:
            first = negative_prompt or ""
            prompts, prompts_2 = _as_list(first, count), _as_list(negative_prompt_2 or first, count)
            for name, given in ("negative_prompt", prompts), ("negative_prompt_2", prompts_2):
                if len(given) != count:
                    raise DistrijaxError(
                        f"{name} has {len(given)} entries for {count} prompts; give one for each, or a string for all"
                    )
            n_context, own = stages.encode([prompts, prompts_2], length=context.shape[1])
            n_pooled = own if n_pooled is None else n_pooled
        assert n_pooled is not None
        _check_shapes("negative_prompt_embeds", n_context, "negative_pooled_prompt_embeds", n_pooled, count)
        for what, a, b in ("prompt_embeds", context, n_context), ("pooled_prompt_embeds", pooled, n_pooled):
            if a.shape != b.shape:
                raise DistrijaxError(f"{what} is {a.shape} but negative_{what} is {b.shape}; they must be equal")
        negative = PromptEmbeds(n_context, n_pooled)

    if num_images_per_prompt > 1:
        conditional, negative = jax.tree.map(
            lambda x: jnp.repeat(x, num_images_per_prompt, axis=0), (conditional, negative)
        )
    return conditional, negative


@dataclasses.dataclass(frozen=True)
class _Stages:
    """The tokenizers and encoders that a prompt goes through, side by side, and the program that runs the encoders."""

    tokenizers: Sequence[Tokenizer]
    encoders: Sequence[TextEncoder]
    program: Callable[..., tuple[Array, Array]]

    def __post_init__(self) -> None:
        if (n := len(self.tokenizers)) != (m := len(self.encoders)):
            raise DistrijaxError(f"{n} tokenizers for {m} text encoders; each needs its own")

    def cast(self, embeds: ArrayLike | None) -> Array | None:
        if embeds is None:
            return None
        array = embeds if isinstance(embeds, jax.Array) else jnp.asarray(np.asarray(embeds))
        return array.astype(self.encoders[-1].dtype) if self.encoders else array

    def encode(self, prompts: list[list[str]], *, clip_skip: int = 0, length: int | None = None) -> tuple[Array, Array]:
        """`length` pads or cuts the prompts to as many tokens, by default what the tokenizer says."""
        if not self.encoders:
            raise DistrijaxError("there is no text encoder to read a prompt with; give prompt_embeds instead")
        if not any(encoder.config.with_projection for encoder in self.encoders):
            raise DistrijaxError(
                "no text encoder has a projection (CLIPTextModelWithProjection), which the pooled embeddings need; "
                "give prompt_embeds and pooled_prompt_embeds instead"
            )
        most = min(encoder.config.num_hidden_layers for encoder in self.encoders) - 1
        if isinstance(clip_skip, bool) or not isinstance(clip_skip, int) or not -1 <= clip_skip <= most:
            raise DistrijaxError(f"clip_skip is {clip_skip!r}; for these text encoders it can be -1 to {most}")
        counts = [len(p) for p in prompts[: len(self.encoders)]]
        if len(set(counts)) > 1:
            raise DistrijaxError(f"prompt has {counts[0]} entries, but prompt_2 {counts[1]}; there must be as many")
        ids = []
        for tokenizer, encoder, texts in zip(self.tokenizers, self.encoders, prompts, strict=False):
            config = encoder.config
            tokens = tokenizer(texts, max_length=length)  # [B, T]
            if tokens.shape[1] > config.max_position_embeddings:
                raise DistrijaxError(
                    f"a prompt of {tokens.shape[1]} tokens is too long for a text encoder with "
                    f"{config.max_position_embeddings} positions"
                )
            if tokens.max() >= config.vocab_size:
                raise DistrijaxError(
                    f"the tokenizer made the id {tokens.max()}, but its text encoder knows {config.vocab_size} tokens; "
                    "the two do not belong together"
                )
            ids.append(tokens)
        if len({tokens.shape[1] for tokens in ids}) > 1:
            raise DistrijaxError(
                f"the tokenizers differ in model_max_length: {[tokens.shape[1] for tokens in ids]}; they must be equal"
            )
        return self.program(tuple(self.encoders), tuple(ids), clip_skip=clip_skip)


def check_prompts(
    prompt: Any,
    prompt_2: Any,
    negative_prompt: Any,
    negative_prompt_2: Any,
    prompt_embeds: Any,
    negative_prompt_embeds: Any,
    pooled_prompt_embeds: Any,
    negative_pooled_prompt_embeds: Any,
    num_images_per_prompt: Any = 1,
) -> None:
    """Refuse combinations of arguments that make no sense, as diffusers' `check_inputs` does. Raises DistrijaxError."""
    if prompt is None and prompt_embeds is None:
        raise DistrijaxError("there is no prompt: give prompt or prompt_embeds")
    for name, text, embeds in (
        ("prompt", prompt, prompt_embeds),
        ("prompt_2", prompt_2, prompt_embeds),
        ("negative_prompt", negative_prompt, negative_prompt_embeds),
        ("negative_prompt_2", negative_prompt_2, negative_prompt_embeds),
    ):
        embeds_name = f"{name.removesuffix('_2')}_embeds"
        if text is not None and embeds is not None:
            raise DistrijaxError(f"both {name} and {embeds_name} are given; they exclude each other")
        if text is not None and not isinstance(text, (str, list)):
            raise DistrijaxError(f"{name} must be a string or a list of strings, not {type(text).__name__}")
        if isinstance(text, list) and not all(isinstance(entry, str) for entry in text):
            wrong = next(entry for entry in text if not isinstance(entry, str))
            raise DistrijaxError(f"{name} must hold strings, but holds {wrong!r}")
    if isinstance(prompt, list) and not prompt:
        raise DistrijaxError("prompt is an empty list; give at least one prompt")
    for name, embeds, pooled in (
        ("prompt_embeds", prompt_embeds, pooled_prompt_embeds),
        ("negative_prompt_embeds", negative_prompt_embeds, negative_pooled_prompt_embeds),
    ):
        if embeds is not None and pooled is None:
            pooled_name = name.replace("prompt", "pooled_prompt")
            raise DistrijaxError(f"{name} needs {pooled_name} beside it, made by the same text encoder")
    number = num_images_per_prompt
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise DistrijaxError(f"num_images_per_prompt is {number!r}; it must be a whole number above zero")


def _as_list(prompt: Prompt, count: int) -> list[str]:
    return [prompt] * count if isinstance(prompt, str) else prompt


def _check_shapes(name: str, context: Array, pooled_name: str, pooled: Array, count: int) -> None:
    for what, array, axes in (name, context, "[B, T, D]"), (pooled_name, pooled, "[B, P]"):
        if array.ndim != axes.count(",") + 1 or array.shape[0] != count:
            raise DistrijaxError(f"{what} has the shape {array.shape}; it must be {axes} with B = {count} prompts")


def added_time_ids(
    original_size: Sequence[int],
    crops_coords_top_left: Sequence[int],
    target_size: Sequence[int],
    *,
    batch: int,
    negative_original_size: Sequence[int] | None = None,
    negative_crops_coords_top_left: Sequence[int] = (0, 0),
    negative_target_size: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """SDXL's micro-conditioning (arXiv 2307.01952, 2.2) of `batch` pictures: time ids, conditional and negative.

    Sizes are (height, width) and crops (top, left), in pixels. Both results are [batch, 6] float32: original size,
    crop, target size. The negative ones differ only if a negative original *and* a negative target size are given.

    Where they differ and batch > 1, the two kinds alternate over the rows, in both results: diffusers repeats the
    pair (negative, conditional) as a whole, and its pictures are what is wanted here.
    """
    row = negative = (
        *_pair("original_size", original_size),
        *_pair("crops_coords_top_left", crops_coords_top_left),
        *_pair("target_size", target_size),
    )
    if negative_original_size is not None and negative_target_size is not None:
        negative = (
            *_pair("negative_original_size", negative_original_size),
            *_pair("negative_crops_coords_top_left", negative_crops_coords_top_left),
            *_pair("negative_target_size", negative_target_size),
        )
    rows = np.tile(np.array([negative, row], np.float32), (batch, 1))  # [2 batch, 6]
    return rows[batch:], rows[:batch]


def refiner_time_ids(
    original_size: Sequence[int],
    crops_coords_top_left: Sequence[int],
    *,
    batch: int,
    aesthetic_score: float = 6.0,
    negative_aesthetic_score: float = 2.5,
    negative_original_size: Sequence[int] | None = None,
    negative_crops_coords_top_left: Sequence[int] = (0, 0),
) -> tuple[np.ndarray, np.ndarray]:
    """Time ids of models that are told an aesthetic score instead of a target size: [batch, 5], as `added_time_ids`."""
    size = _pair("original_size", original_size)
    row = (*size, *_pair("crops_coords_top_left", crops_coords_top_left), aesthetic_score)
    if negative_original_size is not None:
        size = _pair("negative_original_size", negative_original_size)
    crop = _pair("negative_crops_coords_top_left", negative_crops_coords_top_left)
    negative = (*size, *crop, negative_aesthetic_score)
    rows, negatives = (np.tile(np.array([r], np.float32), (batch, 1)) for r in (row, negative))  # [batch, 5]
    return rows, negatives


def check_time_ids(
    count: int, pooled_dim: int, addition_time_embed_dim: int, projection_class_embeddings_input_dim: int
) -> None:
    """Refuse time ids and pooled vectors that do not fill the U-Net's added embedding. Raises DistrijaxError.

    count: of time ids a picture. The other arguments: size of the pooled vector, and two values of the U-Net's config.
    """
    made, expected = addition_time_embed_dim * count + pooled_dim, projection_class_embeddings_input_dim
    if made == expected:
        return
    hint = "projection_class_embeddings_input_dim of the U-Net and projection_dim of the text encoder do not agree"
    if expected - made == addition_time_embed_dim:
        hint = "this U-Net takes one time id more: it wants a target size, so requires_aesthetics_score must be off"
    elif made - expected == addition_time_embed_dim:
        hint = "this U-Net takes one time id less, as a refiner does: set requires_aesthetics_score"
    raise DistrijaxError(
        f"the U-Net's added embedding takes {expected} values, but {count} time ids of {addition_time_embed_dim} and a "
        f"pooled vector of {pooled_dim} make {made}: {hint}"
    )


def _pair(name: str, pair: Sequence[int]) -> tuple[int, int]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(v, (int, float)) for v in pair):
        raise DistrijaxError(f"{name} is {pair!r}; it must be a pair of numbers, in pixels")
    return pair[0], pair[1]

"""Text conditioning from prompts, by the rules of diffusers' `StableDiffusionXLPipeline.encode_prompt`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, DTypeLike

from distrijax.checks import array_of, one_of, whole_number
from distrijax.errors import DistrijaxError
from distrijax.models.text_encoder import Added, TextEncoder
from distrijax.text.ids import added_vectors, check_encoders, check_ids, token_ids
from distrijax.text.syntax import plain_text
from distrijax.text.tokenizer import Tokenizer
from distrijax.text.weighted import PLAIN, SYNTAXES, Syntax, count_chunks, encode_weighted, fill

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
        prompt_syntax: "plain", which has no weights and is cut to 77 tokens, or one of `SYNTAXES`.
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
    prompt_syntax: str = PLAIN

    def __post_init__(self) -> None:
        one_of("prompt_syntax", self.prompt_syntax, (PLAIN, *SYNTAXES))
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

    @property
    def syntax(self) -> Syntax | None:
        """How the texts are read; None without weights."""
        return SYNTAXES.get(self.prompt_syntax)

    def chunks(self, tokenizers: Sequence[Tokenizer]) -> int:
        """Return the number of chunks that every prompt is filled up to, which the denoising program depends on."""
        texts = [self.prompt, self.prompt_2, self.negative_prompt, self.negative_prompt_2]
        every = {text for given in texts if given for text in ([given] if isinstance(given, str) else given)}
        syntax = self.syntax
        if syntax is None:
            return 1
        return max((count_chunks(syntax, text, tokenizer) for text in every for tokenizer in tokenizers), default=1)

    @property
    def words(self) -> list[str]:
        """The prompts without their syntax."""
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt or []
        return texts if self.syntax is None else [plain_text(self.syntax.parse(text)) for text in texts]

    def _check_text(self, name: str) -> None:
        text, embeds_name = getattr(self, name), f"{name.removesuffix('_2')}_embeds"
        if text is None:
            return
        if getattr(self, embeds_name) is not None:
            raise DistrijaxError(f"both {name} and {embeds_name} are given; they are mutually exclusive")
        if isinstance(text, str):
            self._parse(name, [text])
            return
        if not isinstance(text, list) or not all(isinstance(entry, str) for entry in text):
            raise DistrijaxError(f"{name} is {text!r}; it must be a string or a list of strings")
        if not text and name == "prompt":
            raise DistrijaxError("prompt is an empty list; give at least one prompt")
        if text and len(text) != self.count:  # an empty list counts as none, as in diffusers
            raise DistrijaxError(
                f"{name} has {len(text)} entries for {self.count} prompts; give one for each, or a string for all"
            )
        self._parse(name, text)

    def _parse(self, name: str, texts: list[str]) -> None:
        syntax = self.syntax
        for text in texts if syntax is not None else ():
            try:
                assert syntax is not None
                syntax.parse(text)
            except DistrijaxError as error:
                raise DistrijaxError(f"{name}: {error}") from None


class PromptEmbeds(NamedTuple):
    """Text conditioning of B pictures, on the host: the negative branch before the prompt's, or the prompt's alone.

    Attributes:
        context: [branches, B, T, D], penultimate hidden states of all text encoders, side by side.
        pooled: [branches, B, P], end-of-text state of the first text encoder with a projection (in SDXL, the last).
    """

    context: np.ndarray
    pooled: np.ndarray


def encode_ids(
    encoders: tuple[TextEncoder, ...],
    ids: tuple[Array, ...],
    added: tuple[Added, ...] | None = None,
    masks: tuple[Array, ...] | None = None,
    *,
    clip_skip: int = 0,
) -> tuple[Array, Array]:
    """Return the context [B, T, D] and the pooled vector [B, P] of token ids.

    Args:
        encoders: one or two text encoders, of which one has a projection.
        ids: [B, T] for each encoder.
        added: for each encoder, what ids past its vocabulary mean.
        masks: [B, T] for each encoder, false where no token may look.
        clip_skip: layers to skip below the penultimate one (-1 reads the last). XLA drops the layers above.
    """
    nothing = (None,) * len(ids)
    inputs = zip(encoders, ids, added or nothing, masks or nothing, strict=True)
    encodings = [encoder(tokens, extra, mask) for encoder, tokens, extra, mask in inputs]
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
        encode: replacement for `encode_ids`, such as a compiled program; called at most once per branch, and with a
            syntax once for every B chunks.

    Raises:
        DistrijaxError: the prompts do not fit these tokenizers and encoders.
    """
    if len(tokenizers) != len(encoders):
        raise DistrijaxError(f"{len(tokenizers)} tokenizers for {len(encoders)} text encoders; each needs its own")
    dtype = encoders[-1].dtype if encoders else None
    added = tuple(added_vectors(*pair) for pair in zip(tokenizers, encoders, strict=True))

    def branch(kind: str, first: Prompt, second: Prompt | None, skip: int, length: int | None) -> _Branch:
        """Return the caller's embeddings, or those of the two texts."""
        names = f"{kind}prompt_embeds", f"{kind}pooled_prompt_embeds"
        embeds, pooled = (_as_dtype(getattr(prompts, name), dtype) for name in names)
        if embeds is not None and pooled is not None:
            return _Branch(embeds, pooled)
        texts = [[text] * prompts.count if isinstance(text, str) else text for text in (first, second or first)]
        check_encoders(tokenizers, encoders)
        layers = min(encoder.config.num_hidden_layers for encoder in encoders)
        skip = whole_number("clip_skip", skip, least=-1, most=layers - 1)

        def encode_chunks(ids: tuple[np.ndarray, ...], masks: tuple[np.ndarray, ...] | None) -> tuple[Any, Any]:
            check_ids(tokenizers, encoders, ids)
            return encode(tuple(encoders), ids, added, masks, clip_skip=skip)

        if (syntax := prompts.syntax) is None:
            ids = token_ids(tokenizers, texts, length)
            made = _Branch(*encode_chunks(ids, None))
        else:
            weighted = encode_weighted(
                syntax,
                texts[: len(tokenizers)],
                tokenizers,
                [encoder.config.hidden_size for encoder in encoders],
                [encoder.config.with_projection for encoder in encoders].index(True),
                encode_chunks,
            )
            made = _Branch(*(part.astype(dtype) for part in weighted))
        return made if pooled is None else made._replace(pooled=pooled)

    for tokenizer in tokenizers[:1] if prompts.prompt is not None else ():
        tokenizer.advise(prompts.words)
    branches = [branch("", prompts.prompt or "", prompts.prompt_2, prompts.clip_skip or 0, None)]
    if guided:
        context, pooled, _ = branches[0]
        negative = prompts.negative_prompt
        if force_zeros_for_empty_prompt and negative is None and prompts.negative_prompt_embeds is None:
            branches.insert(0, _Branch(np.zeros(context.shape, context.dtype), np.zeros(pooled.shape, pooled.dtype)))
        else:  # diffusers pads or cuts the negative prompt to the length of the prompt's embeddings
            branches.insert(0, branch("negative_", negative or "", prompts.negative_prompt_2, 0, context.shape[1]))
    # Wait for results only now that both branches are dispatched, and fetch each once.
    parts, longest = [], max(each.context.shape[1] for each in branches)
    embeds = [each.filled(longest) for each in branches], [each.pooled for each in branches]
    for name, part in zip(("prompt_embeds", "pooled_prompt_embeds"), embeds, strict=True):
        if part[0].shape != part[-1].shape:
            raise DistrijaxError(
                f"{name} is {part[-1].shape} but negative_{name} is {part[0].shape}; they must be equal"
            )
        stacked = np.stack([np.asarray(array) for array in part])
        parts.append(np.repeat(stacked, prompts.num_images_per_prompt, axis=1))
    return PromptEmbeds(*parts)


class _Branch(NamedTuple):
    """Embeddings of one branch: see `Weighted`; without a syntax, there is nothing to fill them up with."""

    context: Embeds
    pooled: Embeds
    empty: np.ndarray | None = None

    def filled(self, length: int) -> Embeds:
        return self.context if self.empty is None else fill(np.asarray(self.context), self.empty, length)


def _as_dtype(embeds: ArrayLike | None, dtype: DTypeLike | None) -> np.ndarray | None:
    if embeds is None:
        return None
    array = np.asarray(embeds)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype) if dtype is None else dtype)

"""Embeddings of prompts in a syntax with weights and of any length, by the rules of the program that it comes from.

A prompt is cut into chunks of 75 tokens, each of which gets a beginning and an end and is encoded on its own, by the
program that encodes all prompts; the embeddings are then weighted on the host and placed one after the other.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from distrijax.text import a1111, compel
from distrijax.text.syntax import Fragment, Parsed, Section
from distrijax.text.tokenizer import Tokenizer

PLAIN = "plain"

Encode = Callable[[tuple[np.ndarray, ...], tuple[np.ndarray, ...] | None], tuple[np.ndarray, np.ndarray]]
"""Token ids [B, T] of each tokenizer, and masks, to the context [B, T, D] and the pooled vectors [B, P]."""


def _cut_anywhere(words: Sequence[str], room: int) -> int:
    return room


def _cut_at_ends(words: Sequence[str], room: int) -> int:
    """Return the number of tokens to the last end of a sentence, else of a phrase, else of a word."""
    for end in (r"\.</w>", r"[.,;:]</w>", r".*</w>") if len(words) > room else ():
        for i in range(room, 0, -1):
            if re.fullmatch(end, words[i - 1], re.DOTALL):
                return i
    return room


@dataclasses.dataclass(frozen=True)
class Syntax:
    """How a syntax is read, and what its weights do.

    Attributes:
        parse: text to sections.
        cut: the number of tokens that the next chunk takes, of at most so many.
        from_empty: a weight w means e + w (z - e), where e is the embedding of an empty prompt, and below 1 also the
            mean with the prompt whose fragment is masked; otherwise it means w z.
        pools_text: the pooled vector is that of the text as it was typed, cut to 77 tokens, and not the first chunk's.
    """

    parse: Callable[[str], Parsed]
    cut: Callable[[Sequence[str], int], int]
    from_empty: bool
    pools_text: bool


SYNTAXES = {
    "a1111": Syntax(a1111.parse, _cut_anywhere, from_empty=False, pools_text=False),
    "compel": Syntax(compel.parse, _cut_at_ends, from_empty=True, pools_text=True),
}
"""By name; `PLAIN` prompts have no syntax and a single chunk."""


class Chunks(NamedTuple):
    """The tokens of a text, in K chunks of T tokens.

    Attributes:
        ids, weights: [K, T].
        without: for each fragment with a weight below 1, its share in the mean, and the mask [K, T] that hides it.
    """

    ids: np.ndarray
    weights: np.ndarray
    without: list[tuple[float, np.ndarray]]


def chunked(syntax: Syntax, fragments: Sequence[Fragment], tokenizer: Tokenizer) -> Chunks:
    """Return the chunks of a text, at least one."""
    length = tokenizer.model_max_length
    ids: list[int] = []
    words: list[str] = []
    weights: list[float] = []
    fragment: list[int] = []  # the number of each token's fragment
    for number, (text, weight) in enumerate(fragments):
        new, names = tokenizer.words(text)
        ids, words, weights = ids + new, words + names, weights + [weight] * len(new)
        fragment += [number] * len(new)
    starts = [0]
    while starts[-1] == 0 or starts[-1] < len(ids):
        starts.append(starts[-1] + syntax.cut(words[starts[-1] :], length - 2))
    count = len(starts) - 1
    chunks = Chunks(np.full((count, length), tokenizer.pad, np.int32), np.ones((count, length), np.float32), [])
    places = np.zeros(len(ids), int)  # of each token in all chunks, one after the other
    for i, start in enumerate(starts[:-1]):
        part = slice(start, min(starts[i + 1], len(ids)))
        size = part.stop - part.start
        chunks.ids[i, : size + 2] = [tokenizer.begin, *ids[part], tokenizer.end]
        chunks.weights[i, 1 : size + 1] = weights[part]
        places[part] = i * length + 1 + np.arange(size)
    for number, (_, weight) in enumerate(fragments):
        of_fragment = places[np.asarray(fragment, int) == number]
        if syntax.from_empty and weight < 1 and len(of_fragment):
            mask = np.ones(count * length, bool)
            mask[of_fragment[0] : of_fragment[-1] + 1] = False
            mask[::length] = mask[length - 1 :: length] = True
            share = math.tan((1 - max(1e-5, weight)) * math.pi / 2)  # 0 for a weight of 1, 1 for 1/2, and so on
            chunks.without.append((share, mask.reshape(count, length)))
    return chunks


def count_chunks(syntax: Syntax, text: str, tokenizer: Tokenizer) -> int:
    """Return the number of chunks that a prompt has."""
    return sum(
        max(len(chunked(syntax, fragments, tokenizer).ids) for fragments in section.blended)
        for section in syntax.parse(text)
    )


class _Sequences:
    """The sequences of ids, with their masks, that a text encoder has to read, each once."""

    def __init__(self, tokenizer: Tokenizer, masked: bool):
        self.tokenizer, self.masked = tokenizer, masked
        self.ids: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []
        self._known: dict[bytes, int] = {}
        self.empty = self.add(tokenizer([""], warn=False)[0])

    def add(self, ids: np.ndarray, mask: np.ndarray | None = None) -> int:
        """Return the number of a sequence."""
        seen = np.ones(len(ids), bool) if mask is None else mask
        number = self._known.setdefault(ids.tobytes() + seen.tobytes(), len(self.ids))
        if number == len(self.ids):
            self.ids.append(ids)
            self.masks.append(seen)
        return number


class Weighted(NamedTuple):
    """Embeddings of B prompts of K chunks.

    Attributes:
        context: [B, K T, D].
        pooled: [B, P].
        empty: context of an empty prompt [T, D], with which shorter prompts are filled up.
    """

    context: np.ndarray
    pooled: np.ndarray
    empty: np.ndarray


def encode_weighted(
    syntax: Syntax,
    texts: Sequence[Sequence[str]],
    tokenizers: Sequence[Tokenizer],
    widths: Sequence[int],
    projecting: int,
    encode: Encode,
) -> Weighted:
    """Return the embeddings of B prompts, all as long as the longest, in fp32.

    Args:
        texts: for each text encoder, B prompts.
        widths: of each text encoder.
        projecting: the text encoder that makes the pooled vectors.
        encode: is called with B sequences at a time, so that one program serves prompts of all lengths.
    """
    every = list(zip(texts, tokenizers, strict=True))
    sequences = [_Sequences(tokenizer, syntax.from_empty) for tokenizer in tokenizers]
    plans = [
        [_plan(syntax, text, each) for text in prompts] for (prompts, _), each in zip(every, sequences, strict=True)
    ]
    first = [next(_first_sequences(plan)) for plan in plans[projecting]]
    if syntax.pools_text:
        ids = tokenizers[projecting](texts[projecting], warn=False)
        first = [sequences[projecting].add(sequence) for sequence in ids]
    contexts, pooled = _run(sequences, widths, len(texts[0]), encode)
    made = [
        [_combine(syntax, plan, context, each.empty) for plan in prompts]
        for prompts, context, each in zip(plans, contexts, sequences, strict=True)
    ]
    empties = [context[each.empty] for context, each in zip(contexts, sequences, strict=True)]
    longest = max(len(context) for prompts in made for context in prompts)
    filled = [np.stack([fill(context, empty, longest) for context in prompts])
              for prompts, empty in zip(made, empties, strict=True)]  # fmt: skip
    return Weighted(np.concatenate(filled, axis=-1), pooled[first], np.concatenate(empties, axis=-1))


def fill(context: np.ndarray, empty: np.ndarray, length: int) -> np.ndarray:
    """Return a context [..., L, D], filled up to `length` with that of empty chunks [T, D]."""
    missing = max(0, length - context.shape[-2]) // len(empty)
    shape = *context.shape[:-2], missing * len(empty), context.shape[-1]
    return np.concatenate([context, np.broadcast_to(np.tile(empty, (missing, 1)), shape)], axis=-2)


class _Part(NamedTuple):
    """A chunked text, and the numbers of its sequences: of its chunks, and of those that lack a fragment."""

    chunks: Chunks
    sequences: list[int]
    without: list[list[int]]


_Plan = list[tuple[Section, list[_Part]]]


def _plan(syntax: Syntax, text: str, sequences: _Sequences) -> _Plan:
    def part(fragments: Sequence[Fragment]) -> _Part:
        chunks = chunked(syntax, fragments, sequences.tokenizer)
        without = [
            [sequences.add(*sequence) for sequence in zip(chunks.ids, mask, strict=True)] for _, mask in chunks.without
        ]
        return _Part(chunks, [sequences.add(sequence) for sequence in chunks.ids], without)

    return [(section, [part(fragments) for fragments in section.blended]) for section in syntax.parse(text)]


def _first_sequences(plan: _Plan) -> Iterator[int]:
    yield from (part.sequences[0] for _, parts in plan for part in parts)


def _run(
    sequences: Sequence[_Sequences], widths: Sequence[int], batch: int, encode: Encode
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return what each encoder makes of its sequences, [N, T, D] each, and the pooled vectors [N, P]."""
    total = max(len(each.ids) for each in sequences)
    total += -total % batch
    numbers = [[*range(len(each.ids)), *[each.empty] * (total - len(each.ids))] for each in sequences]
    made = []
    for start in range(0, total, batch):
        now = [(each, n[start : start + batch]) for each, n in zip(sequences, numbers, strict=True)]
        ids = tuple(np.stack([each.ids[i] for i in n]) for each, n in now)
        masks = tuple(np.stack([each.masks[i] for i in n]) for each, n in now)
        made.append(encode(ids, masks if sequences[0].masked else None))
    context, pooled = (np.concatenate([np.asarray(x, np.float32) for x in part]) for part in zip(*made, strict=True))
    return np.split(context, np.cumsum(widths)[:-1], axis=-1), pooled


def _combine(syntax: Syntax, plan: _Plan, encoded: np.ndarray, empty: int) -> np.ndarray:
    """Return the context [K T, D] of a prompt, given all encoded sequences [N, T, D]."""
    nothing = encoded[empty]
    sections = []
    for section, parts in plan:
        texts = [_weigh(syntax, part, encoded, nothing) for part in parts]
        longest = max(map(len, texts))
        context = texts[0]
        if section.shares != (1.0,):
            context = _mean(section.shares, [fill(text, nothing, longest) for text in texts])
        if section.weight != 1:
            base = fill(nothing, nothing, longest)
            context = base + np.float32(section.weight) * (context - base)
        sections.append(context)
    return np.concatenate(sections)


def _weigh(syntax: Syntax, part: _Part, encoded: np.ndarray, nothing: np.ndarray) -> np.ndarray:
    def weighted(sequences: list[int]) -> np.ndarray:
        z, weights = encoded[sequences], part.chunks.weights[..., None]  # [K, T, D]
        if syntax.from_empty:
            return np.where(weights == 1, z, nothing + weights * (z - nothing))
        return z * weights

    context = weighted(part.sequences)
    if part.without:
        shares = [1.0, *(share for share, _ in part.chunks.without)]
        context = _mean([share / sum(shares) for share in shares], [context, *map(weighted, part.without)])
    return context.reshape(-1, context.shape[-1])


def _mean(shares: Sequence[float], arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.sum([np.float32(share) * array for share, array in zip(shares, arrays, strict=True)], axis=0)

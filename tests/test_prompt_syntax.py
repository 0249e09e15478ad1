"""Prompts with weights and of any length: against formulas on torch's encoders, and against the package compel."""

import itertools
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from test_prompt import ENCODE, Pair, folders  # noqa: F401

from distrijax.errors import DistrijaxError
from distrijax.text import a1111, compel
from distrijax.text.prompt import PromptInputs, encode_ids, encode_prompt

GOLDEN = json.loads((Path(__file__).parent / "data" / "compel_prompts.json").read_text())

A1111 = {
    "normal text": [[("normal text", 1)]],
    "an (important) word": [[("an ", 1), ("important", 1.1), (" word", 1)]],
    "(unbalanced": [[("unbalanced", 1.1)]],
    "[(both": [[("both", 1)]],
    r"\(literal\] \\ \x": [[(r"(literal] \ x", 1)]],
    "(unnecessary)(parens)": [[("unnecessaryparens", 1.1)]],
    "a (((house:1.3)) [on] a (hill:0.5)": [
        [("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55)],
    ],
    "(a:-1) (b:0) (c:+.5) (d: 2 )": [[("a", -1), (" ", 1), ("b", 0), (" ", 1), ("c", 0.5), (" ", 1), ("d", 2)]],
    "a:1.2) b] c": [[("a:1.2) b] c", 1)]],
    "one BREAK two\nBREAK\nthree BREAKS": [[("one", 1)], [("two", 1)], [("three BREAKS", 1)]],
    "(one BREAK two:2)": [[("one", 2)], [("two", 2)]],
    "BREAK": [[("", 1)], [("", 1)]],
    "": [[("", 1)]],
    "()": [[("", 1)]],
}


@pytest.mark.fast
@pytest.mark.parametrize("prompt", A1111)
def test_a1111_reads_brackets(prompt):
    read = [[(text, round(weight, 9)) for text, weight in section.blended[0]] for section in a1111.parse(prompt)]
    assert read == [[(text, round(weight, 9)) for text, weight in section] for section in A1111[prompt]]


@pytest.mark.fast
@pytest.mark.parametrize("prompt", GOLDEN)
def test_compel_reads_as_compel_does(prompt):
    """Recorded from compel 2.5.1: all sorts of prompts, and random ones of its symbols."""
    read = [[[list(map(list, text)) for text in each.blended], list(each.shares), each.weight]
            for each in compel.parse(prompt)]  # fmt: skip
    assert read == GOLDEN[prompt]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("syntax", "prompt", "place"),
    [
        ("a1111", "a (cat:1.2.3)", 7),
        ("a1111", "(cat:.)", 5),
        ("a1111", f"(cat:{'9' * 400})", 5),
        ("a1111", "a [cat:dog:0.5]", 3),
        ("a1111", "a [cat::5]", 3),
        ("a1111", "a [cat|dog]", 3),
        ("a1111", "a <lora:style:0.8> cat", 3),
        ("compel", "a cat.swap(dog)", 6),
        ("compel", "a withLora(style, 0.8)", 3),
        ("compel", '("a", "b").blend(1)', 11),
        ("compel", '("a", "b").and(1, x)', 11),
        ("compel", '("a", "b").blend(1, 1) more', 24),
        ("compel", '("a", "b").blend(1, -1)', 1),
        pytest.param("compel", "(" * 5000 + "a" + ")" * 5000, 1, id="nested"),
    ],
)
def test_errors_name_the_place(syntax, prompt, place):
    with pytest.raises(DistrijaxError, match=re.escape(f"at character {place}:")) as caught:
        PromptInputs("x", negative_prompt=["y" if syntax == "" else prompt], prompt_syntax=syntax)
    assert str(caught.value).startswith("negative_prompt: ")


@pytest.mark.fast
def test_brackets_in_brackets_take_no_longer() -> None:
    """Each rule reads each place once; otherwise 40 brackets would take 4**40 steps."""
    assert compel.parse("(" * 40 + "a" + ")" * 39 + ")1.5")[0].blended == ((("a", 1.5),),)


@pytest.fixture(scope="module")
def base(folders):  # noqa: F811
    return Pair(folders, force_zeros_for_empty_prompt=False)


def encode(pair: Pair, syntax: str, encode=ENCODE, **arguments):
    return encode_prompt(
        PromptInputs(**arguments, prompt_syntax=syntax), pair.tokenizers, pair.encoders, guided=True,
        force_zeros_for_empty_prompt=pair.zeros, encode=encode,
    )  # fmt: skip


def torch_states(pair: Pair, index: int, ids: list[int], skip: int = 0, mask=None) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states [77, D] and the first output (pooled, for the second encoder) of a row of ids."""
    encoder = (pair.theirs.text_encoder, pair.theirs.text_encoder_2)[index]
    with torch.no_grad():
        out = encoder(torch.tensor([ids]), None if mask is None else torch.tensor([mask]), output_hidden_states=True)
    return out.hidden_states[-2 - skip][0].numpy(), out[0][0].numpy()


def weighted_rows(pair: Pair, index: int, texts: list[tuple[str, float]]) -> tuple[list[list[int]], np.ndarray]:
    """Rows of 77 ids, and weights [K, 77], as sd_embed groups them, but with the tokenizer's own padding."""
    clip = (pair.theirs.tokenizer, pair.theirs.tokenizer_2)[index]
    tokens = [(i, weight) for text, weight in texts for i in clip(text).input_ids[1:-1]]
    rows, weights = [], []
    while tokens or not rows:
        head, tokens = tokens[:75], tokens[75:]
        spare = 75 - len(head)
        rows.append([clip.bos_token_id, *(i for i, _ in head), clip.eos_token_id, *[clip.pad_token_id] * spare])
        weights.append([1, *(weight for _, weight in head), *[1] * (spare + 1)])
    return rows, np.array(weights)


def a1111_reference(pair: Pair, sections: list[list[tuple[str, float]]], chunks: int, skip: int = 0):
    """z times the weight, token by token, for each chunk; the pooled vector of the first chunk."""
    made = []
    for index in range(2):
        made_rows, weights = zip(*(weighted_rows(pair, index, texts) for texts in sections), strict=True)
        rows, weights = list(itertools.chain(*made_rows)), np.concatenate(weights)
        empty = weighted_rows(pair, index, [])[0]
        rows += empty * (chunks - len(rows))
        weights = np.concatenate([weights, np.ones((chunks - len(weights), 77))])
        states = [torch_states(pair, index, row, skip) for row in rows]
        made.append(np.concatenate([z * w[:, None] for (z, _), w in zip(states, weights, strict=True)]))
        pooled = states[0][1]
    return np.concatenate(made, axis=-1), pooled


def close(ours, theirs):
    # fp32, sums in another order: the measured difference is 3e-6 of a standard deviation.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(np.std(theirs)))


WORDS = "red blue cat dog "  # 4 tokens
SECTIONS = {
    "weights": ([[("a ", 1), ("red cat", 1.5), (", a ", 1), ("dog", 1 / 1.1)]], 1, "a (red cat:1.5), a [dog]"),
    "zero and negative": ([[("cat", 0), (" dog", -1)]], 1, "(cat:0)( dog:-1)"),
    "75 tokens": ([[(WORDS * 18 + "red red red", 1)]], 1, WORDS * 18 + "red red red"),
    "76 tokens": ([[(WORDS * 19, 1)]], 2, WORDS * 19),
    "150 tokens": ([[(WORDS * 37, 1), (" cat dog", 1.2)]], 2, WORDS * 37 + "( cat dog:1.2)"),
    "151 tokens": ([[(WORDS * 37, 1.2), (" cat dog red", 1)]], 3, f"({WORDS * 37}:1.2) cat dog red"),
    "break": ([[("a cat", 1)], [("dog " * 80, 1)]], 3, "a cat BREAK " + "dog " * 80),
    "nothing": ([[]], 1, ""),
}


@pytest.mark.parametrize("negative", ["", WORDS * 40])
@pytest.mark.parametrize("case", SECTIONS)
def test_a1111_equals_a_reference(base, case, negative):
    sections, chunks, prompt = SECTIONS[case]
    chunks = max(chunks, 3 if negative else 1)
    ours = encode(base, "a1111", prompt=prompt, negative_prompt=negative, clip_skip=1)
    assert ours.context.shape == (2, 1, 77 * chunks, 80)
    context, pooled = a1111_reference(base, sections, chunks, skip=1)
    close(ours.context[1, 0], context)
    close(ours.pooled[1, 0], pooled)
    context, pooled = a1111_reference(base, [[(negative, 1)]], chunks)
    close(ours.context[0, 0], context)
    close(ours.pooled[0, 0], pooled)


@pytest.mark.parametrize("syntax", ["a1111", "compel"])
def test_a_prompt_without_syntax_is_a_plain_one(base, syntax):
    arguments = {"prompt": ["a red cat", "dog"], "prompt_2": ["blue", ""], "negative_prompt": "x", "clip_skip": 1}
    plain = base.encode(**arguments)
    for ours, theirs in zip(encode(base, syntax, **arguments), plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_batch_is_as_long_as_its_longest_prompt(base):
    """Shorter ones are filled up with encoded empty prompts, and no prompt changes the others."""
    texts = ["a (cat:1.3)", WORDS * 40, "dog"]
    second = ["dog", "cat", WORDS * 20]
    together = encode(base, "a1111", prompt=texts, prompt_2=second, negative_prompt="x")
    assert together.context.shape == (2, 3, 3 * 77, 80)
    empty = encode(base, "a1111", prompt="", negative_prompt="").context[1, 0]
    for i, (text, other) in enumerate(zip(texts, second, strict=True)):
        alone = encode(base, "a1111", prompt=text, prompt_2=other, negative_prompt="x")
        length = alone.context.shape[2]
        close(together.context[1, i, :length], alone.context[1, 0])
        close(together.pooled[1, i], alone.pooled[1, 0])
        if length == 77:
            close(together.context[1, i, length:], np.concatenate([empty, empty]))


def test_zeros_and_given_embeddings_get_the_length_of_the_prompt(folders):  # noqa: F811
    pair = Pair(folders)
    zeros = encode(pair, "a1111", prompt=WORDS * 20)
    assert zeros.context.shape == (2, 1, 154, 80)
    assert zeros.context[1].any()
    assert not zeros.context[0].any()
    given = {"prompt_embeds": zeros.context[1], "pooled_prompt_embeds": zeros.pooled[1]}
    assert encode(pair, "a1111", negative_prompt="x", **given).context.shape == (2, 1, 154, 80)
    with pytest.raises(DistrijaxError, match="must be equal"):
        encode(pair, "a1111", negative_prompt=WORDS * 40, **given)


def compel_reference(pair: Pair, fragments: list[tuple[str, float]], index: int) -> np.ndarray:
    """compel's embedding of a prompt of one chunk: lerp from the empty prompt, and masked means below 1."""
    (row,), weights = weighted_rows(pair, index, fragments)
    clip = (pair.theirs.tokenizer, pair.theirs.tokenizer_2)[index]
    empty = torch_states(pair, index, weighted_rows(pair, index, [])[0][0])[0]

    def weighted(mask):
        return empty + (torch_states(pair, index, row, mask=mask)[0] - empty) * weights[0][:, None]

    total, shares, place = weighted([1] * 77), 1.0, 1
    for text, weight in fragments:
        size = len(clip(text).input_ids) - 2
        if weight < 1:
            mask = [0 if place <= i < place + size else 1 for i in range(77)]
            share = math.tan((1 - max(weight, 1e-5)) * math.pi / 2)
            total, shares = total + share * weighted(mask), shares + share
        place += size
    return total / shares


@pytest.mark.parametrize(
    "fragments",
    [
        [("a", 1), ("cat", 1.1)],
        [("a", 1), ("red cat", 1.5), ("and", 1), ("dog", 0.9)],
        [("a", 0.5), ("cat", 0.2), ("dog", 1.3)],
        [("a cat", 0), ("dog", 1)],
    ],
)
def test_compel_equals_a_reference(base, fragments):
    prompt = " ".join(text if weight == 1 else f"({text}){weight}" for text, weight in fragments)
    ours = encode(base, "compel", prompt=prompt, negative_prompt="")
    theirs = np.concatenate([compel_reference(base, fragments, i) for i in range(2)], axis=-1)
    np.testing.assert_allclose(ours.context[1, 0], theirs, rtol=0, atol=1e-4 * float(theirs.std()))


COMPEL = {
    "plain": "a red cat",
    "plus and minus": "a red++ cat- and (a dog)1.4",
    "below 1": "(a red)0.6 cat, (blue dog)0.3",
    "nested": "a (red (cat)1.2 dog)0.8",
    "two chunks": "a (red)1.3 cat. " + "blue dog, " * 40 + "(cat)0.7",
    "a fragment over chunks": "(" + "blue dog " * 60 + ")0.7",
    "no place to cut": "!" * 100 + " cat+",
    "blend": '("a red cat", "a blue dog+").blend(1, 0.5)',
    "blend of lengths": '("a red cat", "' + "blue dog " * 60 + '").blend(0.7, -0.2, no_normalize)',
    "and": '("a red cat", "a blue dog").and()',
    "quoted": '"a \\"red\\" cat"1.2 dog',
}


@pytest.mark.parametrize("negative", ["", "blue+ " * 100])
@pytest.mark.parametrize("case", COMPEL)
def test_compel_equals_compel(base, case, negative):
    """The package itself, where it is installed."""
    package = pytest.importorskip("compel")
    with torch.no_grad():
        theirs = package.CompelForSDXL(base.theirs)(COMPEL[case], negative_prompt=negative)
    ours = encode(base, "compel", prompt=COMPEL[case], negative_prompt=negative)
    for mine, reference in zip(
        [*ours.context[::-1], *ours.pooled[::-1]],
        [theirs.embeds, theirs.negative_embeds, theirs.pooled_embeds, theirs.negative_pooled_embeds],
        strict=True,
    ):
        reference = reference.numpy()
        assert mine.shape == reference.shape
        np.testing.assert_allclose(mine, reference, rtol=0, atol=2e-5 * float(reference.std()))


def test_one_program_encodes_prompts_of_all_lengths(base):
    program = jax.jit(lambda *arrays, clip_skip: encode_ids(*arrays, clip_skip=clip_skip), static_argnames="clip_skip")
    for prompts in ["a", "b"], [WORDS * 40, "(cat:1.3)"], ["x BREAK y", "[z]"]:
        encode(base, "a1111", program, prompt=prompts, negative_prompt="blue " * 80)
    assert program._cache_size() == 1
    for prompt in "a", "(a)0.5 (b)1.2", '("a", "b").and()':
        encode(base, "compel", program, prompt=[prompt, "x"], negative_prompt="b-")
    assert program._cache_size() == 2

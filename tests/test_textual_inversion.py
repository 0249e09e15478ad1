"""Textual inversion against diffusers on torch, in every format that is not a pickle."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from helpers_checkpoint import SHALLOW, base_pipeline
from safetensors.torch import save_file

from distrijax import DistrijaxError, StableDiffusionXLPipeline
from distrijax.checkpoint.inversion import read_inversion

WIDTH = 32


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    return 0.1 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("inversion") / "base"
    base_pipeline(path.parent, **SHALLOW).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipe(folder):
    return StableDiffusionXLPipeline.from_pretrained(folder, progress=False)


@pytest.fixture(autouse=True)
def unloaded(pipe):
    yield
    pipe.unload_textual_inversion()


@pytest.fixture
def theirs(tmp_path):
    return base_pipeline(tmp_path)


def both(pipe, theirs, token: str, first: torch.Tensor, second: torch.Tensor, path: Path) -> None:
    """Load one file with both encoders' vectors here, and in diffusers each by itself."""
    save_file({"clip_l": first, "clip_g": second}, path)
    pipe.load_textual_inversion(path, token=token)
    theirs.load_textual_inversion(first, token, text_encoder=theirs.text_encoder, tokenizer=theirs.tokenizer)
    theirs.load_textual_inversion(second, token, text_encoder=theirs.text_encoder_2, tokenizer=theirs.tokenizer_2)


def assert_equal(pipe, theirs, **arguments) -> None:
    ours = pipe.encode_prompt(**arguments)
    with torch.no_grad():
        references = theirs.encode_prompt(**arguments)
    for mine, reference in zip(ours, references, strict=True):
        # fp32, sums in another order: the measured difference is 3e-6 of a standard deviation.
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-5 * float(reference.std()))


PROMPTS = [
    "a <toy> cat",
    "<toy>",
    "<toy> and <toy>, the <TOY>s",
    "x<toy>y",
    "<toy>_1 <toy>_2",
    "a " * 74 + "<toy>",
    "a " * 80 + "<toy>",
    "no token here",
]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_equals_diffusers(pipe, theirs, prompt, count, tmp_path):
    """With old configurations (eos_token_id 2) the pooled state is read at the new token, whose id is the highest."""
    both(pipe, theirs, "<toy>", vectors(count), vectors(count, 1), tmp_path / "toy.safetensors")
    assert_equal(pipe, theirs, prompt=prompt, negative_prompt="a red <toy>")
    assert_equal(pipe, theirs, prompt=[prompt, "red"], negative_prompt=["x", prompt], prompt_2=["<toy> red", prompt])


def test_two_tokens_and_unloading_one(pipe, theirs, tmp_path):
    plain = pipe.encode_prompt("<toy> and moeb")
    both(pipe, theirs, "<toy>", vectors(2), vectors(2, 1), tmp_path / "a.safetensors")
    both(pipe, theirs, "moeb", vectors(1, 2), vectors(1, 3), tmp_path / "b.safetensors")
    assert_equal(pipe, theirs, prompt="<toy> and moeb, moebius", negative_prompt="moeb")
    pipe.unload_textual_inversion("<toy>")
    for encoder, tokenizer in ("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"):
        parts = {"text_encoder": getattr(theirs, encoder), "tokenizer": getattr(theirs, tokenizer)}
        theirs.unload_textual_inversion(["<toy>", "<toy>_1"], **parts)
    assert list(pipe.tokenizer.added) == ["moeb"]
    assert_equal(pipe, theirs, prompt="<toy> and moeb", negative_prompt="moeb")
    pipe.unload_textual_inversion()
    for before, after in zip(plain, pipe.encode_prompt("<toy> and moeb"), strict=True):
        np.testing.assert_array_equal(before, after)


def written(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    save_file(tensors, path)
    return path


FORMATS = {
    "diffusers": ({"<new>": vectors(1)[0]}, "<new>", "text_encoder"),
    "diffusers, rows": ({"<new>": vectors(2)}, "<new>", "text_encoder"),
    "A1111": ({"emb_params": vectors(2)}, "file", "text_encoder"),
    "A1111, half": ({"emb_params": vectors(2).half()}, "file", "text_encoder"),
    "bfloat16": ({"emb_params": vectors(2).bfloat16()}, "file", "text_encoder"),
    "one of both": ({"clip_g": vectors(2)}, "file", "text_encoder_2"),
    "pivotal tuning": ({"text_encoders_0": vectors(1), "text_encoders_1": vectors(1, 1)}, "file", None),
    "both": ({"clip_l": vectors(4), "clip_g": vectors(4, 1)}, "file", None),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(pipe, kind, tmp_path):
    tensors, token, network = FORMATS[kind]
    pipe.load_textual_inversion(str(written(tensors, tmp_path / "file.safetensors")))
    both = [*tensors.values(), *tensors.values()][:2]
    for tensor, encoder, tokenizer in zip(
        both, ["text_encoder", "text_encoder_2"], [pipe.tokenizer, pipe.tokenizer_2],
        strict=True,
    ):  # fmt: skip
        rows = tensor.float().numpy().reshape(-1, WIDTH) if network in (None, encoder) else []
        assert list(tokenizer.added) == [token, *(f"{token}_{i}" for i in range(1, len(rows)))][: len(rows)]
        for row, added in zip(rows, tokenizer.added.values(), strict=True):
            np.testing.assert_array_equal(row, added)


def test_what_is_passed_in_memory(pipe, tmp_path):
    second = {"text_encoder": pipe.text_encoder_2, "tokenizer": pipe.tokenizer_2}
    pipe.load_textual_inversion(vectors(1), token="aa", **second)
    pipe.load_textual_inversion({"clip_l": vectors(1), "clip_g": vectors(1)}, token="bb", tokenizer=pipe.tokenizer)
    pipe.load_textual_inversion(vectors(2).numpy(), token=["cc", "dd"])
    pipe.load_textual_inversion([{"ee": vectors(1)}, vectors(1)[0].tolist()], token=["ff", "gg"])
    written({"emb_params": vectors(1)}, tmp_path / "other.safetensors")
    pipe.load_textual_inversion(tmp_path)
    assert list(pipe.tokenizer.added) == ["bb", "cc", "dd", "ff", "gg", "other"]
    assert list(pipe.tokenizer_2.added) == ["aa"]
    np.testing.assert_array_equal(pipe.tokenizer.added["dd"], vectors(2)[1])


def test_nothing_compiles_and_nothing_else_changes(pipe, tmp_path):
    pipe.encode_prompt("a cat", negative_prompt="x")
    compiled = len(pipe.programs.encode_prompt._prepared)
    weights = [np.asarray(x) for x in jax.tree.leaves(pipe.text_encoder)]
    before = pipe.encode_prompt("a cat")
    pipe.load_textual_inversion(vectors(40), token="<new>")
    with_token = pipe.encode_prompt("a <new> cat", negative_prompt="<new>")
    assert not np.array_equal(with_token[0], before[0])
    np.testing.assert_array_equal(pipe.encode_prompt("a cat")[0], before[0])
    assert len(pipe.programs.encode_prompt._prepared) == compiled
    other = type(pipe).from_pipe(pipe)  # shares the tokenizers, and so the tokens
    np.testing.assert_array_equal(other.encode_prompt("a <new> cat")[0], with_token[0])
    for old, new in zip(weights, jax.tree.leaves(pipe.text_encoder), strict=True):
        np.testing.assert_array_equal(old, new)
    pipe.save_pretrained(tmp_path / "saved")
    again = StableDiffusionXLPipeline.from_pretrained(tmp_path / "saved", progress=False)
    assert again.tokenizer.files == pipe.tokenizer.files
    assert not again.tokenizer.knows("<new>")


def test_weights_and_long_prompts(pipe):
    """A token of three vectors at the edge of a chunk is cut as words are."""
    pipe.load_textual_inversion({"clip_l": vectors(3), "clip_g": vectors(3)}, token="<new>")
    context = pipe.encode_prompt("a " * 74 + "(<new>:1.2)", prompt_syntax="a1111")[0]
    assert context.shape[1] == 154
    pipe.unload_textual_inversion()
    for i, row in enumerate(vectors(3)):
        pipe.load_textual_inversion({"clip_l": row, "clip_g": row}, token=f"n{i}")
    separate = pipe.encode_prompt("a " * 74 + "(n0 n1 n2:1.2)", prompt_syntax="a1111")[0]
    np.testing.assert_allclose(context, separate, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "arguments", "error"),
    [
        (vectors(1), {}, "say with token"),
        (vectors(1), {"token": "a"}, "the token 'a' is known already"),
        (vectors(1), {"token": "<|endoftext|>"}, "known already"),
        (vectors(1), {"token": " "}, "token is ' '; it must be a word"),
        (vectors(1), {"token": 5}, "token is 5; it must be a word"),
        (vectors(2), {"token": ["qq", "r", "s"]}, "token has 3 entries for 2 embeddings"),
        (vectors(1, width=8), {"token": "qq"}, "8 numbers, but text_encoder has 32 and text_encoder_2 has 32"),
        (
            {"clip_l": vectors(1), "clip_g": vectors(1, width=8)},
            {"token": "qq"},
            "'qq' has 8 numbers, but text_encoder_2",
        ),
        ({"x": vectors(1), "y": vectors(1)}, {}, "is not a textual inversion; .* x, y"),
        ({}, {}, "not nothing"),
        ({5: vectors(1)}, {}, "keys must be names"),
        ({"qq": vectors(1) / 0}, {}, "must be finite|array of finite"),
        (torch.zeros(2, 2, WIDTH), {"token": "qq"}, r"shape \(2, 2, 32\)"),
        ("nowhere.safetensors", {}, "no such file"),
        (vectors(1), {"token": "qq", "text_encoder": "text_encoder"}, "must be this pipeline's"),
        (5, {"token": "qq"}, "must be"),
    ],
)
def test_errors_change_nothing(pipe, source, arguments, error):
    with pytest.raises(DistrijaxError, match=error):
        pipe.load_textual_inversion(source, **arguments)
    assert not pipe.tokenizer.added
    assert not pipe.tokenizer_2.added


def test_other_errors(pipe, tmp_path):
    pipe.load_textual_inversion(vectors(2), token="new")
    for taken in "new", "new_1":
        with pytest.raises(DistrijaxError, match="is known already"):
            pipe.load_textual_inversion([{"other": vectors(1)}, {taken: vectors(1)}])
    with pytest.raises(DistrijaxError, match="tokens has nothing, but what is loaded is: new, new_1"):
        pipe.unload_textual_inversion("nothing")
    with pytest.raises(DistrijaxError, match="tokens is 5"):
        pipe.unload_textual_inversion(5)
    assert list(pipe.tokenizer.added) == ["new", "new_1"]
    with pytest.raises(DistrijaxError, match="different text encoders"):
        pipe.load_textual_inversion(vectors(1), "qq", tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder_2)
    (tmp_path / "old.pt").write_bytes(b"x")
    with pytest.raises(DistrijaxError, match="is a pickle"):
        read_inversion(tmp_path / "old.pt")
    with pytest.raises(DistrijaxError, match="needs one"):
        read_inversion(tmp_path)

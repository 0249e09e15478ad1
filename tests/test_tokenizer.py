"""The tokenizer against transformers': ids of any text, every form of its files, damaged ones."""

import hashlib
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import transformers

from distrijax.checkpoint.tokenizers import write_tokenizer
from distrijax.errors import DistrijaxError
from distrijax.text import vocabulary
from distrijax.text.tokenizer import Tokenizer
from distrijax.text.vocabulary import BYTES, vocabulary_problem

pytestmark = pytest.mark.fast

WORDS = ["the", "and", "red", "blue", "cat", "dog", "circle", "square", "above", "below", "photo", "don't", "abc"]


def byte_alphabet() -> list[str]:
    """The 256 bytes as printable characters, in the order of CLIP's vocabulary (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def write_clip_tokenizer(folder, *, pad: str = "<|endoftext|>", form: str = "old", length: int = 77) -> None:
    """A small CLIP tokenizer: bytes, bytes that end a word, merges that build a few words, two special tokens.

    form: "old" is vocab.json and merges.txt as the SDXL checkpoints have them, "json" what transformers 5 writes.
    """
    merges = []
    for word in WORDS:
        left = word[0]
        for i, letter in enumerate(word[1:], 2):
            merges.append((left, letter + "</w>" if i == len(word) else letter))
            left += letter
    merges = list(dict.fromkeys([*merges, ("!", "!</w>"), ("Ã", "©")]))
    base = byte_alphabet()
    tokens = [*base, *(b + "</w>" for b in base), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]

    def special(content: str) -> dict:
        return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    start, end = special("<|startoftext|>"), special("<|endoftext|>")
    named = {"bos_token": start, "eos_token": end, "unk_token": end}
    settings = {name: {"__type": "AddedToken", **token} for name, token in named.items()}
    settings |= {"pad_token": pad, "model_max_length": length, "tokenizer_class": "CLIPTokenizer"}
    settings |= {"add_prefix_space": False, "do_lower_case": True, "errors": "replace"}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (folder / "special_tokens_map.json").write_text(json.dumps({**named, "pad_token": pad}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if form == "json":
        clip = transformers.CLIPTokenizer.from_pretrained(folder)
        for file in folder.iterdir():
            file.unlink()
        clip.save_pretrained(folder)
        assert {file.name for file in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


PROMPTS = [
    "a photo of the red cat",
    "",
    "   ",
    "!",
    "wow!!! the blue dog, (red:1.2) [[circle]] above the square...",
    "ABC Abc aBC",
    "ÀÉÎ café cafe\u0301 naïve Straße İstanbul",
    "日本語の猫 кот القط",
    "😀👩‍👩‍👧 ❤️",
    "don't we'll they've i'm it's you're he'd",
    "tabs\tand\nlines\r\n\u00a0\u2003and  spaces",
    "1234 3.14 ½ ² ٣",
    "<|startoftext|> nested <|endoftext|> tokens <|ENDOFTEXT|>",
    "{}~`^_=+|\\\"'\u2019\u201c",
    "\u0000\u200b\ufeff\ufffd",
    "the cat and " * 40,
    "the " * 75,
    "the " * 76,
    "日" * 200,
]


@pytest.mark.parametrize("form", ["old", "json"])
@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_ids_equal_transformers(tmp_path, form, pad):
    write_clip_tokenizer(tmp_path / "tokenizer", pad=pad, form=form)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    ours = Tokenizer(tmp_path / "tokenizer")
    assert ours.model_max_length == theirs.model_max_length == 77
    assert ours.vocab_size == len(theirs)

    def reference(prompts, length):
        return theirs(prompts, padding="max_length", max_length=length, truncation=True)["input_ids"]

    ids = ours(PROMPTS)
    assert (ids.shape, ids.dtype) == ((len(PROMPTS), 77), np.int32)
    np.testing.assert_array_equal(ids, reference(PROMPTS, 77))
    np.testing.assert_array_equal(ours(PROMPTS, max_length=9), reference(PROMPTS, 9))
    for prompt in PROMPTS:  # one by one as well: what one call leaves behind must not reach the next
        np.testing.assert_array_equal(ours([prompt]), reference([prompt], 77))

    end = theirs.eos_token_id
    assert ids[1].tolist() == [theirs.bos_token_id, end] + [0 if pad == "!" else end] * 75


def test_copied_files_are_the_same_tokenizer(tmp_path):
    for form in "old", "json":
        write_clip_tokenizer(tmp_path / form, pad="!", form=form)
        ours = Tokenizer(tmp_path / form)
        ids = ours(PROMPTS)
        write_tokenizer(ours.files, tmp_path / f"{form}-copy")
        copy = transformers.CLIPTokenizer.from_pretrained(tmp_path / f"{form}-copy")
        again = copy(PROMPTS, padding="max_length", max_length=77, truncation=True)["input_ids"]
        np.testing.assert_array_equal(ids, again)
        np.testing.assert_array_equal(ids, Tokenizer(ours.files)(PROMPTS))


def test_lost_text_is_reported(tmp_path, caplog):
    write_clip_tokenizer(tmp_path / "tokenizer", length=8)
    tokenizer = Tokenizer(tmp_path / "tokenizer")
    tokenizer(["the cat and the dog", "the"])
    assert not caplog.records
    tokenizer(["the cat and the dog above the red square", "the", "the cat " * 4])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "8 tokens" in record.getMessage()
    assert record.getMessage().endswith("cut off: ['the red square', 'the cat']")


def test_lost_text_is_the_end_of_the_uncut_prompt(tmp_path, caplog):
    """Also if the lost part is longer than what is kept, or has "!", with which the second tokenizer pads."""
    write_clip_tokenizer(tmp_path / "tokenizer", pad="!", length=4)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    prompt = "the cat red ! blue dog !"
    assert Tokenizer(tmp_path / "tokenizer")([prompt, "the cat"]).shape == (2, 4)
    expected = theirs.decode(theirs(prompt)["input_ids"][3:-1])
    assert expected.count("!") == 2
    assert caplog.records[0].getMessage().endswith(f"cut off: {[expected]}")


def test_prompts_are_tokenized_once(tmp_path, monkeypatch):
    write_clip_tokenizer(tmp_path / "tokenizer", length=8)
    tokenizer = Tokenizer(tmp_path / "tokenizer")
    calls = []
    clip = tokenizer._clip
    monkeypatch.setattr(type(clip), "_encode_plus", _counted(type(clip)._encode_plus, calls))
    tokenizer(["the cat and the dog above the red square", "the"])
    assert len(calls) == 1


def _counted(function, calls: list):
    def counted(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    return counted


def test_length_leaves_room_for_start_and_end(tmp_path):
    write_clip_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(DistrijaxError, match="max_length is 1; it must be a whole number, 2 or more"):
        Tokenizer(tmp_path / "tokenizer")(["the cat"], max_length=1)


def test_no_torch_and_no_chatter(tmp_path):
    """A process in which torch cannot be imported reads prompts, and transformers keeps quiet about it."""
    write_clip_tokenizer(tmp_path / "tokenizer")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from distrijax.text.tokenizer import Tokenizer\n"
        "print(Tokenizer(sys.argv[1])(['the cat'])[0, :4].tolist())"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "tokenizer")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == Tokenizer(tmp_path / "tokenizer")(["the cat"])[0, :4].tolist()
    assert done.stderr == ""


def damage(folder, name: str, change) -> None:
    path = folder / name
    if change is None:
        path.unlink()
    elif isinstance(change, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    else:
        path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("form", "name", "change", "message"),
    [
        ("old", "vocab.json", None, "vocab.json and merges.txt, or tokenizer.json"),
        ("old", "merges.txt", None, "vocab.json and merges.txt, or tokenizer.json"),
        ("old", "vocab.json", lambda b: b[:100], "vocab.json: is damaged"),
        ("old", "vocab.json", lambda b: b"[]", "vocab.json: is damaged .it must hold a JSON object"),
        ("old", "vocab.json", {"<|endoftext|>": "x"}, "vocab.json is damaged: it must map tokens to whole numbers"),
        ("old", "vocab.json", lambda b: b'{"a": 1}', "ids must be 0 to 0, each once"),
        ("old", "merges.txt", lambda b: b + b"lonely\n", "the merge 'lonely' is not a pair"),
        ("old", "merges.txt", lambda b: b + b"q zzz\n", "not those that the merges make"),
        ("old", "merges.txt", lambda b: b"\xff\xfe" + b, "merges.txt: is damaged"),
        ("old", "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "T5Tokenizer"),
        ("old", "special_tokens_map.json", {"pad_token": "<pad>"}, "lacks the pad_token '<pad>'"),
        ("json", "tokenizer.json", None, "vocab.json and merges.txt, or tokenizer.json"),
        ("json", "tokenizer.json", lambda b: b[:-200], "tokenizer.json: is damaged"),
        (
            "json",
            "tokenizer.json",
            {"model": {"type": "Unigram", "vocab": []}},
            "its model must be 'BPE', not 'Unigram'",
        ),
        ("json", "tokenizer.json", {"added_tokens": None}, "cannot be read"),
        ("json", "tokenizer_config.json", {"eos_token": "</s>"}, "lacks the eos_token '</s>'"),
    ],
)
def test_bad_files(tmp_path, form, name, change, message):
    folder = tmp_path / "tokenizer"
    write_clip_tokenizer(folder, form=form)
    Tokenizer(folder)
    damage(folder, name, change)
    with pytest.raises(DistrijaxError, match=message) as error:
        Tokenizer(folder)
    assert str(folder) in str(error.value)


def test_length_that_no_file_states(tmp_path):
    write_clip_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer_config.json").unlink()
    assert Tokenizer(tmp_path / "tokenizer")(["the cat"]).shape == (1, 77)


def shuffled(content: bytes) -> bytes:
    vocabulary = json.loads(content)
    ids = list(vocabulary.values())
    ids[100:300] = ids[299:99:-1]
    return json.dumps(dict(zip(vocabulary, ids, strict=True))).encode()


@pytest.mark.parametrize(
    ("form", "name", "change", "message"),
    [
        ("old", "vocab.json", shuffled, "not those that the merges make"),
        ("old", "vocab.json", {"cat</w>": 3}, "ids must be 0 to .*, each once"),
        ("old", "vocab.json", {"cat</w>": 10_000}, "ids must be 0 to .*, each once"),
        ("old", "merges.txt", lambda b: b"#version: 0.2\n", "there are no merges"),
        ("old", "merges.txt", lambda b: b[: len(b) // 2].rpartition(b"\n")[0], "not those that the merges make"),
        ("old", "merges.txt", lambda b: b"\n".join(reversed(b.split(b"\n"))), "not those that the merges make"),
        ("old", "tokenizer_config.json", {"padding_side": "left"}, "padding_side is 'left'"),
        ("old", "tokenizer_config.json", {"truncation_side": "left"}, "truncation_side is 'left'"),
        ("json", "tokenizer_config.json", {"padding_side": "left"}, "padding_side is 'left'"),
        ("old", "tokenizer_config.json", {"added_tokens_decoder": "x"}, "cannot be read"),
    ],
)
def test_vocabularies_and_merges_that_do_not_belong_together(tmp_path, form, name, change, message):
    test_bad_files(tmp_path, form, name, change, message)


def test_the_vocabulary_of_tokenizer_json_is_checked_too(tmp_path):
    write_clip_tokenizer(tmp_path / "tokenizer", form="json")
    values = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    values["model"]["merges"] = values["model"]["merges"][::-1]
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(DistrijaxError, match="not those that the merges make"):
        Tokenizer(tmp_path / "tokenizer")


def test_small_vocabularies_without_all_bytes():
    """As in the tiny models on the hub."""
    words = ["l", "o", "w", "e", "r", "lo", "l</w>", "w</w>", "r</w>", "low</w>", "er</w>", "<|startoftext|>"]
    vocabulary, merges = {word: i for i, word in enumerate(words)}, [("l", "o"), ("lo", "w</w>"), ("e", "r</w>")]
    assert vocabulary_problem(vocabulary, merges) is None
    assert "order of the merges" in vocabulary_problem(vocabulary, merges[::-1])
    assert "order of the merges" in vocabulary_problem(vocabulary, [*merges, ("w", "o")])


def test_openais_vocabulary_is_known_by_its_digest(monkeypatch, caplog):
    tokens = [*BYTES, *(b + "</w>" for b in BYTES), "in", "<|startoftext|>", "<|endoftext|>"]
    digest = hashlib.sha256("\n".join(tokens).encode()).hexdigest()
    for known, warned in ((digest, False), ("0" * 64, True)):
        monkeypatch.setattr(vocabulary, "_OPENAI", (len(tokens), known))
        assert vocabulary_problem({token: i for i, token in enumerate(tokens)}, [("i", "n")]) is None
        assert bool(caplog.records) == warned

"""A byte-level CLIP tokenizer of the demo world: any text has tokens, and each word of the grammar is one."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from demo_world.captions import caption
from demo_world.scenes import sample

LENGTH = 77


def byte_alphabet() -> list[str]:
    """Return the 256 characters that stand for bytes, in the order of the vocabularies of GPT-2 and CLIP."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(len(hidden))]


def words() -> list[str]:
    """Return every word of the grammar, and a few that users may write."""
    rng, seen = np.random.default_rng(0), set[str]()
    for _ in range(20000):
        seen |= set(re.findall(r"[a-z]+|[^\sa-z]", caption(sample(rng), rng)))
    return sorted(seen | {"grey", "centre", "photo", "painting", "two", "three", "are", "against", "front", "of"})


def merges() -> list[tuple[str, str]]:
    """Return byte-pair merges, the most frequent pair first, that make every word a single token."""
    parts = {word: (*word[:-1], word[-1] + "</w>") for word in words()}
    pairs_in_order = []
    while any(len(p) > 1 for p in parts.values()):
        pairs = Counter(pair for p in parts.values() for pair in pairwise(p))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        pairs_in_order.append(best)
        for word, pieces in parts.items():
            merged: list[str] = []
            for piece in pieces:
                if merged and (merged[-1], piece) == best:
                    merged[-1] += piece
                else:
                    merged.append(piece)
            parts[word] = tuple(merged)
    return pairs_in_order


def write(folder: Path, pad: str) -> None:
    """Write vocab.json, merges.txt, special_tokens_map.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs, alphabet = merges(), byte_alphabet()
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(p) for p in pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(p) for p in pairs) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = pad
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | special, indent=1))


class Tokenizer:
    """A tokenizer that is fast enough for training: it looks up whole words, which are single tokens in the grammar."""

    def __init__(self, folder: Path):
        self.vocabulary = json.loads((folder / "vocab.json").read_text())
        pad = json.loads((folder / "special_tokens_map.json").read_text())["pad_token"]
        self.pad, self.size = self.vocabulary[pad], len(self.vocabulary)

    def __call__(self, captions: list[str]) -> np.ndarray:
        """Return token ids, int32 [N, 77]."""
        ids = np.full((len(captions), LENGTH), self.pad, np.int32)
        for line, text in zip(ids, captions, strict=True):
            tokens = [self.vocabulary[w + "</w>"] for w in re.findall(r"[a-z]+|[^\sa-z]", text.lower())]
            line[: len(tokens) + 2] = [self.size - 2, *tokens, self.size - 1]
        return ids

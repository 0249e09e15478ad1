"""Whether a tokenizer's vocabulary and merges belong together: otherwise it would draw another prompt's picture."""

import hashlib
import logging
from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTES = [*map(chr, _PRINTABLE), *(chr(256 + number) for number in range(256 - len(_PRINTABLE)))]
"""The characters that stand for the 256 bytes, in the order of the vocabularies of GPT-2 and CLIP."""

_OPENAI = 49408, "7cccc44d334555d1ff3c0ac5f0246b428fab2918383e77ee745cf30d41010b78"
"""Size of the vocabulary that SDXL has, and the SHA-256 digest of its tokens in the order of their ids."""


def vocabulary_problem(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> str | None:
    """Return why these merges cannot be the vocabulary's, or None.

    CLIP's ids follow from its merges: the bytes, the bytes that end a word, what each merge makes, and the special
    tokens. Of smaller vocabularies, which need not have all bytes, only the order is checked.
    """
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        return f"its ids must be 0 to {len(tokens) - 1}, each once"
    if not merges:
        return "there are no merges"
    made = list(dict.fromkeys(first + second for first, second in merges))
    if set(BYTES) <= vocabulary.keys():
        expected = list(dict.fromkeys([*BYTES, *(byte + "</w>" for byte in BYTES), *made]))
        rest = tokens[len(expected) :]
        if tokens[: len(expected)] != expected or not all(token[0] == "<" and token[-1] == ">" for token in rest):
            return "its tokens and ids are not those that the merges make"
    elif not set(made) <= vocabulary.keys() or made != sorted(made, key=vocabulary.__getitem__):
        return "its ids are not in the order of the merges"
    size, digest = _OPENAI
    if len(tokens) == size and hashlib.sha256("\n".join(tokens).encode()).hexdigest() != digest:
        logger.warning("the tokenizer's vocabulary has the size of OpenAI's, but other tokens; is it the model's own?")
    return None

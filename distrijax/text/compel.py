"""The prompts of the package compel: `word+`, `(a phrase)1.3`, `("one", "two").blend(1, 2)`, `("one", "two").and()`.

Every rule takes a place in the text and returns what it found there with the place after it, or None; the first rule
that finds something wins. What looks like syntax and is none, such as a bracket that nobody closes, is text.
"""

import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from distrijax.text.syntax import Fragment, Parsed, Section, merge, refuse

T = TypeVar("T")
Found: TypeAlias = tuple[T, int] | None
Fragments = list[Fragment]

PLUS, MINUS = 1.1, 0.9

TOKENS = {
    "word": r'(?:\\[()",.+\-=]|[-+](?![\s()",.+\-=]|$)|-?[0-9]+|[^\s()",.+\-=])+',  # with no syntax in it
    "anything": r"\S+",
    "quoted": r'"((?:\\"|[^"\n\r])*)"',
    "weight": r"(\++)|(-+)|([+-]?(?:\d+\.\d*|\.\d+)|-?\d+)",
    "attend": r"\.attend\s*\(\s*(?:(\++)|(-+)|([+-]?(?:\d+\.\d*|\.\d+)|-?\d+))\s*\)",
    "mark": r"[,.]",
    "combine": r"\.(blend|and|add)\s*\(([^()]*)\)",
    "swap": r"\.swap\s*\(",
    "lora": r"(?:useLora|withLora)\s*\(\s*[\w-]+\s*(?:,\s*[-+.\d]+\s*)?\)",
}
_TOKENS = {kind: re.compile(pattern) for kind, pattern in TOKENS.items()}


def parse(prompt: str) -> Parsed:
    """Return a section for each text of `.and()`, nearly always one.

    Raises:
        DistrijaxError: the weights of a combination are not those of its texts, or something has no meaning here.
    """
    text = re.sub(r",(\S)", r", \1", prompt)
    try:
        return _parse(text)
    except RecursionError:
        raise refuse(text, 0, "its brackets are nested too deeply") from None


def _parse(text: str) -> Parsed:
    combined = _Reader(text).combination()
    if combined is None:
        return (_section([_Reader(text).prompt()], [1.0]),)
    (texts, kind, numbers), end = combined
    if text[end:].strip():
        raise refuse(text, _skip(text, end), f"nothing can stand after .{kind}(…)")
    options = [option.strip() for option in numbers.split(",") if option.strip()]
    normalize = not (kind == "blend" and options[-1:] == ["no_normalize"])
    weights = _weights(text, options[: None if normalize else -1], len(texts), kind)
    if kind != "blend":
        return tuple(_section([each], [1.0], weight) for each, weight in zip(texts, weights, strict=True))
    total = sum(weights) if normalize else 1.0
    if total == 0:
        raise refuse(text, 0, "the weights of .blend(…) add up to 0; add no_normalize as the last one, or change them")
    return (_section(texts, [weight / total for weight in weights]),)


def _section(texts: list[Fragments], shares: list[float], weight: float = 1.0) -> Section:
    return Section(tuple(merge(text, " ") or (Fragment(""),) for text in texts), tuple(shares), weight)


def _weights(text: str, options: list[str], count: int, kind: str) -> list[float]:
    try:
        weights = [float(option) for option in options] or [1.0] * count
    except ValueError:
        weights = [math.nan]
    if len(weights) != count or not all(map(math.isfinite, weights)):
        raise refuse(text, text.rfind(f".{kind}"), f"it needs a number for each of the {count} texts, or none")
    return weights


def _skip(text: str, place: int) -> int:
    """Return the place of the next character that is not white space."""
    return place + len(text[place:]) - len(text[place:].lstrip())


class _Reader:
    """The rules of the grammar on one text."""

    def __init__(self, text: str):
        self.text = text
        self._found: dict[
            tuple[str, int], Any
        ] = {}  # by rule and place: otherwise, each bracket in another takes 4 times

    def token(self, kind: str, place: int, *, skip: bool = True) -> re.Match[str] | None:
        return _TOKENS[kind].match(self.text, _skip(self.text, place) if skip else place)

    def literal(self, character: str, place: int) -> int | None:
        place = _skip(self.text, place)
        return place + 1 if self.text.startswith(character, place) else None

    def first(self, place: int, *rules: Callable[[int], Found[T]]) -> Found[T]:
        for rule in rules:
            key = rule.__name__, place
            if key not in self._found:
                self._found[key] = rule(place)
            if self._found[key] is not None:
                return self._found[key]
        return None

    def many(self, place: int, *rules: Callable[[int], Found[Fragments]]) -> tuple[Fragments, int]:
        fragments: Fragments = []
        while (found := self.first(place, *rules)) is not None and found[1] > place:
            fragments, place = fragments + found[0], found[1]
        return fragments, place

    def prompt(self) -> Fragments:
        """Read the whole text, in which every character that is not white space has a meaning."""
        rules = self.adapter, self.attention, self.quoted, self.parenthesized, self.anything
        fragments, end = self.many(0, *rules)
        assert not self.text[end:].strip()
        return fragments

    def inside(self, place: int) -> tuple[Fragments, int]:
        """Read what can stand in brackets or quotation marks."""
        return self.many(
            place, self.adapter, self.attention, self.parenthesized, self.quoted, self.word, self.punctuation
        )

    def adapter(self, place: int) -> Found[Fragments]:
        if lora := self.token("lora", place):
            raise refuse(self.text, lora.start(), "adapters are loaded from files (load_lora_weights), so take it out")
        target = self.target(place)
        if target is not None and (swap := self.token("swap", target[1])):
            raise refuse(self.text, swap.start(), "prompts do not change within a picture")
        return None

    def attention(self, place: int) -> Found[Fragments]:
        if (target := self.target(place)) is None:
            return None
        fragments, end = target
        if attend := self.token("attend", end):
            return [Fragment(text, weight * _factor(attend)) for text, weight in fragments], attend.end()
        operator = self.token("weight", end, skip=False)
        bracketed = self.first(place, self.quoted, self.parenthesized) is not None
        if operator is None or (operator[3] and not bracketed):
            return None
        return [Fragment(text, weight * _factor(operator)) for text, weight in fragments], operator.end()

    def target(self, place: int) -> Found[Fragments]:
        return self.first(place, self.quoted, self.parenthesized, self.word)

    def parenthesized(self, place: int) -> Found[Fragments]:
        if (start := self.literal("(", place)) is None:
            return None
        fragments, end = self.inside(start)
        after = self.literal(")", end)
        return None if after is None else (fragments, after)

    def quoted(self, place: int) -> Found[Fragments]:
        if (quoted := self.token("quoted", place)) is None:
            return None
        content = quoted[1].replace('\\"', '"')
        if not content.strip():
            return [Fragment("")], quoted.end()
        content = content.replace('"', '\\"')
        fragments, end = _Reader(content).inside(0)
        return None if content[end:].strip() else (fragments, quoted.end())

    def quoted_prompt(self, place: int) -> Found[Fragments]:
        """Read a quoted text of a combination, in which every character has a meaning."""
        if (quoted := self.token("quoted", place)) is None:
            return None
        return _Reader(quoted[1].replace('\\"', '"').replace('"', '\\"')).prompt(), quoted.end()

    def word(self, place: int) -> Found[Fragments]:
        word = self.token("word", place)
        return None if word is None else ([Fragment(_unescaped(word[0]))], word.end())

    def anything(self, place: int) -> Found[Fragments]:
        word = self.token("anything", place)
        return None if word is None else ([Fragment(_unescaped(word[0]))], word.end())

    def punctuation(self, place: int) -> Found[Fragments]:
        mark = self.token("mark", place)
        return None if mark is None else ([Fragment(mark[0])], mark.end())

    def combination(self) -> Found[tuple[list[Fragments], str, str]]:
        """Read `("one", "two").blend(1, 2)`: the texts, the kind, and the numbers."""
        place = self.literal("(", 0)
        texts: list[Fragments] = []
        while place is not None:
            text = self.first(place, self.target, self.quoted_prompt)
            if text is None:
                return None
            texts.append(text[0])
            place = self.literal(",", text[1])
            if place is None and (end := self.literal(")", text[1])) is not None:
                kind = self.token("combine", end)
                return None if kind is None else ((texts, kind[1], kind[2]), kind.end())
        return None


def _factor(match: re.Match[str]) -> float:
    plus, minus, number = match.groups()
    return PLUS ** len(plus) if plus else MINUS ** len(minus) if minus else float(number)


def _unescaped(text: str) -> str:
    for character in '()"':
        text = text.replace(f"\\{character}", character)
    return text

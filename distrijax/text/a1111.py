r"""The prompts of AUTOMATIC1111's web UI: `(more)`, `[less]`, `(weight:1.3)`, `\(` and BREAK.

Brackets multiply: by 1.1, by 1 / 1.1, or by the weight that is written; those that nobody closes reach to the end.
"""

import math
import re

from distrijax.text.syntax import Fragment, Parsed, Section, merge, refuse

MORE, LESS = 1.1, 1 / 1.1

TOKENS = {
    "escape": r"\\[\\()\[\]]?",
    "break": r"\s*\bBREAK\b\s*",
    "lora": r"<(?:lora|lyco|hypernet):[^<>]*>",
    "open": r"[(\[]",
    "weight": r":\s*(?P<number>[+-]?[.\d]+)\s*\)",
    "close": r"[)\]]",
    "text": r"(?:(?!\s*\bBREAK\b|<(?:lora|lyco|hypernet):)[^\\()\[\]:])+|.",
}
_TOKEN = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in TOKENS.items()), re.DOTALL)
_EDIT = re.compile(r":\s*\d*\.?\d+\s*$|(?<!\\)\|")


def parse(prompt: str) -> Parsed:
    """Return a section for each part between BREAKs.

    Raises:
        DistrijaxError: a weight is no number, or something is meant that has no effect here.
    """
    sections: list[list[Fragment]] = [[]]
    brackets: dict[str, list[tuple[int, int, int]]] = {"(": [], "[": []}  # where each opened: section, fragment, place

    def multiply(opened: tuple[int, int, int], factor: float) -> None:
        section, first, _ = opened
        for i in range(section, len(sections)):
            start = first if i == section else 0
            sections[i][start:] = [Fragment(text, weight * factor) for text, weight in sections[i][start:]]

    for token in _TOKEN.finditer(prompt):
        kind, text, place = token.lastgroup, token[0], token.start()
        kind = "weight" if token["weight"] else kind
        if kind == "lora":
            raise refuse(prompt, place, "adapters are loaded from files (load_lora_weights), so take it out")
        if kind == "escape":
            text = text[1:]
        elif kind == "break":
            sections.append([])
            continue
        elif kind == "open":
            brackets[text].append((len(sections) - 1, len(sections[-1]), place))
            continue
        elif kind == "weight" and brackets["("]:
            multiply(brackets["("].pop(), _number(prompt, token))
            continue
        elif kind == "close" and brackets["(" if text == ")" else "["]:
            opened = brackets["(" if text == ")" else "["].pop()
            if text == "]" and _EDIT.search(prompt[opened[2] + 1 : place]):
                raise refuse(prompt, opened[2], r"prompts do not change between steps; write \[ for a bracket")
            multiply(opened, MORE if text == ")" else LESS)
            continue
        sections[-1].append(Fragment(text))
    for bracket, factor in (("(", MORE), ("[", LESS)):
        for opened in brackets[bracket]:
            multiply(opened, factor)
    return tuple(Section((merge(fragments, "") or (Fragment(""),),)) for fragments in sections)


def _number(prompt: str, token: re.Match[str]) -> float:
    try:
        weight = float(token["number"])
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise refuse(prompt, token.start(), f"{token['number']} is not a number, which the weight must be")
    return weight

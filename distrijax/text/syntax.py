"""What the syntaxes of prompts have in common: the parsed prompt, and errors that name the place."""

from typing import NamedTuple

from distrijax.errors import DistrijaxError


class Fragment(NamedTuple):
    """Text whose tokens all have one weight."""

    text: str
    weight: float = 1.0


class Section(NamedTuple):
    """A part of a prompt that is encoded on its own, and placed after the section before it.

    Attributes:
        blended: the texts whose embeddings are averaged, each as fragments; nearly always a single one.
        shares: the share of each text in that sum.
        weight: of the whole section.
    """

    blended: tuple[tuple[Fragment, ...], ...]
    shares: tuple[float, ...] = (1.0,)
    weight: float = 1.0


Parsed = tuple[Section, ...]


def refuse(prompt: str, place: int, problem: str) -> DistrijaxError:
    """Return the error about what stands at `place`, counted from 0."""
    shown = prompt[place : place + 30]
    return DistrijaxError(f"the prompt has {shown!r} at character {place + 1}: {problem}")


def plain_text(parsed: Parsed) -> str:
    """Return the words of a prompt."""
    return " ".join(text for section in parsed for texts in section.blended for text, _ in texts)


def merge(fragments: list[Fragment], between: str) -> tuple[Fragment, ...]:
    """Return the fragments with neighbours of one weight joined, since words are tokenized with their neighbours."""
    merged: list[Fragment] = []
    for fragment in fragments:
        if merged and merged[-1].weight == fragment.weight:
            fragment = Fragment(merged.pop().text + between + fragment.text, fragment.weight)
        merged.append(fragment)
    return tuple(merged)

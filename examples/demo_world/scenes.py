"""Scenes of the demo world: what a caption means and a picture shows.

A `Scene` holds items (shape, colour, size, place), their arrangement and the background. `sample` draws a random one;
`captions` translates scenes to words and back, and `drawing` paints them.
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring")
SIZES = ("small", "medium", "large")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 38, 38),
    "orange": (249, 140, 22),
    "yellow": (250, 215, 30),
    "green": (34, 160, 70),
    "blue": (37, 90, 225),
    "purple": (140, 60, 180),
    "pink": (245, 120, 180),
    "black": (20, 20, 20),
    "white": (255, 255, 255),
}
PLACES = (
    "left", "right", "top", "bottom", "center", "top left", "top right", "bottom left", "bottom right",
)  # fmt: skip
BACKGROUNDS = ("default", "plain", "gradient", "horizontal", "vertical")
ARRANGEMENTS = ("one", "above", "left", "inside", "beside", "row", "column", "places", "two", "three")


@dataclass(frozen=True)
class Item:
    """One coloured shape. `place` is one of `PLACES`, or None where the arrangement decides."""

    shape: str
    colour: str
    size: str = "medium"
    place: str | None = None


@dataclass(frozen=True)
class Background:
    """`default` (light gray), `plain` (one colour), `gradient` (colour at the top, white at the bottom) or stripes."""

    kind: str = "default"
    colour: str | None = None


@dataclass(frozen=True)
class Scene:
    """The meaning of a caption. `items` follow the arrangement: left to right, top to bottom, inner before outer."""

    items: tuple[Item, ...]
    arrangement: str = "one"
    background: Background = Background()

    @property
    def held_out(self) -> bool:
        """Whether this combination of arrangement, colours and shapes is excluded from training (one in eight)."""
        items = [f"{i.colour} {i.shape} {i.place}" for i in self.items]
        if self.arrangement == "beside":  # both orders are the same scene
            items.sort()
        return zlib.crc32(f"{self.arrangement}:{'|'.join(items)}".encode()) % 8 == 0


def sample(rng: np.random.Generator) -> Scene:
    """Return a random scene, which may be a held-out one."""
    arrangement = str(rng.choice(ARRANGEMENTS, p=(0.18, 0.22, 0.22, 0.06, 0.05, 0.08, 0.07, 0.08, 0.02, 0.02)))
    background = _sample_background(rng)
    taken = {background.colour, "white"} if background.kind in BACKGROUNDS[2:] else {background.colour}
    colours = [c for c in COLOURS if c not in taken]
    count = {"one": 1, "row": 3, "column": 3, "two": 1, "three": 1}.get(arrangement, 2)
    items = [_sample_item(rng, colours) for _ in range(count)]
    if arrangement == "inside":
        inner, outer = items
        free = [c for c in colours if c != inner.colour]
        container = str(rng.choice(("circle", "square", "diamond")))
        outer = replace(outer, shape=container, colour=str(rng.choice(free)), size="large")
        items = [replace(inner, size="small"), outer]
    elif arrangement in ("row", "column", "three"):
        items = _without_large(items)
    elif arrangement == "one" and rng.random() < 0.6:
        items = [replace(items[0], place=str(rng.choice(PLACES)))]
    elif arrangement == "places":
        first = str(rng.choice([p for p in PLACES if p != "center"]))
        items = [replace(items[0], place=first), replace(items[1], place=_distant_place(first, rng))]
        items = _without_large(items)
    items *= {"two": 2, "three": 3}.get(arrangement, 1)
    return Scene(tuple(items), arrangement, background)


def _without_large(items: list[Item]) -> list[Item]:
    return [replace(i, size="medium" if i.size == "large" else i.size) for i in items]


def _sample_item(rng: np.random.Generator, colours: list[str]) -> Item:
    size = str(rng.choice(("medium", "small", "large"), p=(0.6, 0.2, 0.2)))
    return Item(str(rng.choice(SHAPES)), str(rng.choice(colours)), size)


def _sample_background(rng: np.random.Generator) -> Background:
    kind = str(rng.choice(BACKGROUNDS, p=(0.5, 0.32, 0.06, 0.06, 0.06)))
    if kind == "default":
        return Background()
    names = [*COLOURS, "gray"] if kind == "plain" else [c for c in COLOURS if c != "white"]
    return Background(kind, str(rng.choice(names)))


def _distant_place(place: str, rng: np.random.Generator) -> str:
    """Return a place far enough from `place` for two items: the opposite side, or another corner."""
    mirror = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    words = place.split()
    if len(words) == 1:
        return mirror[place]
    flips = [(1, 0), (0, 1), (1, 1)][int(rng.integers(3))]
    return " ".join(mirror[w] if f else w for w, f in zip(words, flips, strict=True))

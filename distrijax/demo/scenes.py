"""The demo model's world: a caption grammar, and a program that draws what a caption says.

A `Scene` is the meaning of a caption: items (shape, colour, size, place), their arrangement and the background.
`sample` draws a scene, `caption` puts it into words, `parse` reads words back into a scene, `render` paints it.
Pictures are 256x256; all lengths below are pixels of that canvas, x to the right and y down.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from distrijax.errors import DistrijaxError

SIZE = 256
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring")
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
GRAY = (128, 128, 128)
DEFAULT_BACKGROUND = (205, 205, 205)
RADII = {"small": (21, 27), "medium": (33, 41), "large": (50, 58)}  # half the side of an item's bounding box
SIZE_WORDS = {"small": ("small", "tiny"), "medium": ("",), "large": ("large", "big")}
PLACES: dict[str, tuple[float, float]] = {  # centre of the place, as a fraction of the canvas
    "left": (0.24, 0.5), "right": (0.76, 0.5), "top": (0.5, 0.24), "bottom": (0.5, 0.76), "center": (0.5, 0.5),
    "top left": (0.24, 0.24), "top right": (0.76, 0.24), "bottom left": (0.24, 0.76), "bottom right": (0.76, 0.76),
}  # fmt: skip
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "center": ("in the center", "in the middle"),
    **{c: (f"in the {c} corner", f"in the {c}") for c in ("top left", "top right", "bottom left", "bottom right")},
}
BACKGROUNDS = ("default", "plain", "gradient", "horizontal", "vertical")
ARRANGEMENTS: dict[str, tuple[str, ...]] = {  # every way to say it; the first is the plainest
    "one": ("{a}",),
    "above": (
        "{a} above {b}", "{b} below {a}", "{a} over {b}", "{b} under {a}", "{a} on top of {b}", "{b} beneath {a}",
        "{a} is above {b}", "{b} is below {a}", "{b} with {a} above it", "{a} with {b} below it",
    ),
    "left": (
        "{a} to the left of {b}", "{b} to the right of {a}", "{a} left of {b}", "{b} right of {a}",
        "{a} on the left of {b}", "{b} on the right of {a}", "{a} is to the left of {b}", "{b} is to the right of {a}",
        "{b} with {a} to its left", "{a} with {b} to its right",
    ),
    "inside": ("{a} inside {b}", "{b} containing {a}", "{b} with {a} inside", "{a} in {b}", "{b} around {a}"),
    "beside": ("{a} and {b}", "{a} next to {b}", "{a} beside {b}"),
    "row": (
        "{a}, {b} and {c} in a row", "{b} between {a} and {c}", "a row of {a}, {b} and {c}", "{a}, {b} and {c}",
        "{a}, {b} and {c} from left to right",
    ),
    "column": (
        "{a}, {b} and {c} in a column", "a column of {a}, {b} and {c}", "{a} above {b} above {c}",
        "{c} below {b} below {a}", "{a}, {b} and {c} from top to bottom",
    ),
    "places": ("{a} and {b}", "{a}, {b}"),
    "two": ("two {s}", "two {s} side by side"),
    "three": ("three {s}", "three {s} in a row"),
}  # fmt: skip
PREFIXES = ("", "a picture of ", "an image of ", "a drawing of ", "there is ")


@dataclass(frozen=True)
class Item:
    """One coloured shape. `place` is a key of `PLACES`, or None where the arrangement decides."""

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
    """What a caption means. `items` stand in the arrangement's own order: left to right, top to bottom, inner first."""

    items: tuple[Item, ...]
    arrangement: str = "one"
    background: Background = Background()

    @property
    def held_out(self) -> bool:
        """Whether training never sees this combination of arrangement, colours and shapes (one in eight)."""
        items = "|".join(f"{i.colour} {i.shape} {i.place}" for i in self.items)
        if self.arrangement == "beside":  # either order is the same scene
            items = "|".join(sorted(items.split("|")))
        return zlib.crc32(f"{self.arrangement}:{items}".encode()) % 8 == 0


@dataclass(frozen=True)
class Placement:
    """Where an item is drawn: centre and half the side of its bounding box, in pixels."""

    x: float
    y: float
    radius: float


# ---------------------------------------------------------------------------------------------------- sampling


def sample(rng: np.random.Generator) -> Scene:
    """A random scene, held-out ones included."""
    kinds = ("one", "above", "left", "inside", "beside", "row", "column", "places", "two", "three")
    arrangement = str(rng.choice(kinds, p=(0.18, 0.22, 0.22, 0.06, 0.05, 0.08, 0.07, 0.08, 0.02, 0.02)))
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
        items = [replace(i, size="medium" if i.size == "large" else i.size) for i in items]
    elif arrangement == "one" and rng.random() < 0.6:
        items = [replace(items[0], place=str(rng.choice(list(PLACES))))]
    elif arrangement == "places":
        first = str(rng.choice([p for p in PLACES if p != "center"]))
        items = [replace(items[0], place=first), replace(items[1], place=_opposite(first, rng))]
        items = [replace(i, size="medium" if i.size == "large" else i.size) for i in items]
    items *= {"two": 2, "three": 3}.get(arrangement, 1)
    return Scene(tuple(items), arrangement, background)


def _sample_item(rng: np.random.Generator, colours: list[str]) -> Item:
    size = str(rng.choice(("medium", "small", "large"), p=(0.6, 0.2, 0.2)))
    return Item(str(rng.choice(SHAPES)), str(rng.choice(colours)), size)


def _sample_background(rng: np.random.Generator) -> Background:
    kind = str(rng.choice(BACKGROUNDS, p=(0.5, 0.32, 0.06, 0.06, 0.06)))
    if kind == "default":
        return Background()
    names = [*COLOURS, "gray"] if kind == "plain" else [c for c in COLOURS if c != "white"]
    return Background(kind, str(rng.choice(names)))


def _opposite(place: str, rng: np.random.Generator) -> str:
    """A place far enough from `place` for both items to fit: mirrored across the middle, or a neighbouring corner."""
    mirror = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    words = place.split()
    if len(words) == 1:
        return mirror[place]
    flips = [(1, 0), (0, 1), (1, 1)][int(rng.integers(3))]
    return " ".join(mirror[w] if f else w for w, f in zip(words, flips, strict=True))


# ---------------------------------------------------------------------------------------------------- words


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """The scene in words: one of the many phrasings, or the plainest one where `rng` is None."""

    def pick(options: tuple[str, ...]) -> str:
        return options[0] if rng is None else options[int(rng.integers(len(options)))]

    article = rng is None or rng.random() < 0.85

    def phrase(item: Item, plural: bool = False) -> str:
        noun = ("crosses" if item.shape == "cross" else item.shape + "s") if plural else item.shape
        words = " ".join(w for w in (pick(SIZE_WORDS[item.size]), item.colour, noun) if w)
        if article and not plural:
            words = ("an " if words[0] in "aeiou" else "a ") + words
        return f"{words} {pick(PLACE_WORDS[item.place])}" if item.place else words

    slots = dict(zip("abc", (phrase(i) for i in scene.items), strict=False))
    text = pick(ARRANGEMENTS[scene.arrangement]).format(**slots, s=phrase(scene.items[0], plural=True))
    prefix = "" if rng is None or rng.random() < 0.7 else pick(PREFIXES)
    return prefix + text + _background_phrase(scene.background, pick)


def _background_phrase(background: Background, pick: Callable[[tuple[str, ...]], str]) -> str:
    if background.kind == "default":
        return ""
    kind = {"gradient": " gradient", "horizontal": " horizontally striped", "vertical": " vertically striped"}
    name = f"{background.colour}{kind.get(background.kind, '')}"
    a = "an" if name[0] in "aeiou" else "a"
    return pick((f" on {a} {name} background", f" with {a} {name} background", f", {name} background"))


_COLOUR = "|".join(COLOURS)
_ITEM = (
    r"(?:(?:an?|the|one) )?(?:(?P<{0}size>small|tiny|large|big) )?"
    rf"(?P<{{0}}colour>{_COLOUR}) (?P<{{0}}shape>{'|'.join(SHAPES)})"
)
_PLACE_OF = {words: place for place, options in PLACE_WORDS.items() for words in options}
_PLACE = r" (?P<{0}place>" + "|".join(sorted(_PLACE_OF, key=len, reverse=True)) + ")"
_BACKGROUND = re.compile(
    r"(?:,? (?:on|with|against|in front of))? ?(?:an? |the )?"
    rf"(?P<colour>{_COLOUR}|gr[ae]y) ?(?P<kind>gradient|horizontally striped|vertically striped)? background$"
)


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """(arrangement, expression) for every phrasing; the first that matches the whole text wins."""
    patterns = []
    for arrangement in ("places", *(a for a in ARRANGEMENTS if a != "places")):
        for template in ARRANGEMENTS[arrangement]:
            expression = re.escape(template).replace(r"\ ", " ").replace(r"\{", "{").replace(r"\}", "}")
            for slot in "abc":
                item = _ITEM.format(slot)
                if arrangement == "places":
                    item += _PLACE.format(slot)
                elif arrangement == "one":
                    item += f"(?:{_PLACE.format(slot)})?"
                expression = expression.replace(f"{{{slot}}}", item)
            plural = _ITEM.format("a").removesuffix(")") + ")(?:s|es)"
            patterns.append((arrangement, re.compile(expression.replace("{s}", plural) + "$")))
    return patterns


def parse(prompt: str) -> Scene:
    """The scene that `prompt` describes. The inverse of `caption`; raises `DistrijaxError` outside the grammar."""
    text = re.sub(r"\s+", " ", prompt.lower().strip(" .!")).replace("grey", "gray").replace("centre", "center")
    text = re.sub(r"^(?:(?:an?|the) )?(?:(?:picture|image|drawing|photo|painting) of )", "", text)
    text = re.sub(r"^there (?:is|are) ", "", text)
    background = Background()
    if found := _BACKGROUND.search(text):
        kind = (found["kind"] or "plain").removesuffix("ly striped")
        background = Background(kind, found["colour"])
        text = text[: found.start()].rstrip(" ,")
    for arrangement, pattern in _patterns():
        if match := pattern.match(text):
            groups = match.groupdict()
            items = tuple(_item_of(groups, slot) for slot in "abc" if groups.get(f"{slot}shape"))
            items *= {"two": 2, "three": 3}.get(arrangement, 1)
            return Scene(items, arrangement, background)
    raise DistrijaxError(
        f"{prompt!r} is not a caption of the demo world. A caption is like {caption(EXAMPLE)!r}; "
        f"colours: {', '.join(COLOURS)}; shapes: {', '.join(SHAPES)}."
    )


def _item_of(groups: dict[str, str | None], slot: str) -> Item:
    word = groups.get(f"{slot}size") or ""
    size = next(size for size, words in SIZE_WORDS.items() if word in words)
    place = _PLACE_OF.get(groups.get(f"{slot}place") or "")
    return Item(str(groups[f"{slot}shape"]), str(groups[f"{slot}colour"]), size, place)


EXAMPLE = Scene((Item("circle", "red"), Item("square", "blue")), "above")


# ---------------------------------------------------------------------------------------------------- drawing


def anchors(scene: Scene) -> list[tuple[float, float]]:
    """The mean centre of each item, as fractions (x, y) of the canvas; 0.5 where the caption leaves it open."""
    table: dict[str, tuple[tuple[float, float], ...]] = {
        "one": ((0.5, 0.5),),
        "above": ((0.5, 0.27), (0.5, 0.73)),
        "left": ((0.27, 0.5), (0.73, 0.5)),
        "inside": ((0.5, 0.5), (0.5, 0.5)),
        "beside": ((0.27, 0.5), (0.73, 0.5)),
        "row": ((0.19, 0.5), (0.5, 0.5), (0.81, 0.5)),
        "column": ((0.5, 0.19), (0.5, 0.5), (0.5, 0.81)),
        "two": ((0.27, 0.5), (0.73, 0.5)),
        "three": ((0.19, 0.5), (0.5, 0.5), (0.81, 0.5)),
        "places": ((0.5, 0.5), (0.5, 0.5)),
    }
    return [PLACES[i.place] if i.place else xy for i, xy in zip(scene.items, table[scene.arrangement], strict=True)]


def arrange(scene: Scene, rng: np.random.Generator) -> list[Placement]:
    """Random positions that obey the scene: inside the canvas, at least 8 pixels apart."""
    centres = anchors(scene)
    if scene.arrangement == "beside" and rng.random() < 0.5:
        centres = centres[::-1]
    vertical = scene.arrangement in ("above", "column")
    horizontal = scene.arrangement in ("left", "beside", "row", "two", "three")
    for attempt in range(200):
        spread = 1.0 - attempt / 200  # crowded scenes end near the anchors, where everything fits
        radii = [rng.uniform(*RADII[i.size]) for i in scene.items]
        if scene.arrangement == "inside":
            x, y = rng.uniform(0.35, 0.65, 2) * SIZE
            return [Placement(x, y, radii[0]), Placement(x, y, 58 + 10 * rng.random())]
        if len(radii) == 3:
            radii = [min(r, 36.0) for r in radii]
        placed = []
        for (x, y), radius in zip(centres, radii, strict=True):
            along, across = 0.05, 0.16
            if scene.items[0].place:
                along = across = 0.04
            dx = across if vertical else along if horizontal else across
            dy = across if horizontal else along if vertical else across
            room = (radius + 6) / SIZE
            cx = np.clip(x + spread * rng.uniform(-dx, dx), room, 1 - room)
            cy = np.clip(y + spread * rng.uniform(-dy, dy), room, 1 - room)
            placed.append(Placement(float(cx) * SIZE, float(cy) * SIZE, radius))
        if not _crowded(placed):
            break
    return placed


def _crowded(placed: list[Placement]) -> bool:
    pairs = [(p, q) for i, p in enumerate(placed) for q in placed[:i]]
    return any(max(abs(p.x - q.x), abs(p.y - q.y)) < p.radius + q.radius + 8 for p, q in pairs)


def _polygon(shape: str) -> np.ndarray:
    """Corners of a straight-edged shape in the box [-1, 1]²."""
    if shape == "square":
        points = [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    elif shape == "triangle":
        points = [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)]
    elif shape == "diamond":
        points = [(0.0, -1.0), (0.85, 0.0), (0.0, 1.0), (-0.85, 0.0)]
    elif shape == "cross":
        a, b = 0.34, 0.98
        half = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        points = half + [(-x, -y) for x, y in half]
    else:
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        length = np.where(np.arange(10) % 2 == 0, 1.05, 0.46)
        points = list(zip(length * np.cos(angles), length * np.sin(angles) + 0.05, strict=True))
    return np.asarray(points, np.float64)


def coverage(shape: str, x: np.ndarray, y: np.ndarray, edge: float) -> np.ndarray:
    """How much of the pixel at (x, y) lies inside the shape: 0 to 1 from the signed distance (shape in [-1, 1]²).

    edge: width of a pixel in the shape's own unit, over which the edge is blended.
    """
    if shape in ("circle", "ring"):
        r = np.hypot(x, y)
        distance = r - 0.97 if shape == "circle" else np.abs(r - 0.76) - 0.21
    else:
        corners = _polygon(shape)
        squared, inside = np.full(x.shape, np.inf), np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
            t = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            squared = np.minimum(squared, (px - t * ex) ** 2 + (py - t * ey) ** 2)
            inside ^= ((ay > y) != (by > y)) & (x < ax + ex * (y - ay) / (ey if ey else 1.0))
        distance = np.where(inside, -np.sqrt(squared), np.sqrt(squared))
    return np.clip(0.5 - distance / edge, 0, 1)


def paint_background(background: Background) -> np.ndarray:
    """The empty canvas, float32 [256, 256, 3] in 0..255."""
    if background.kind == "default" or background.colour is None:
        return np.full((SIZE, SIZE, 3), DEFAULT_BACKGROUND, np.float32)
    colour = np.asarray(GRAY if background.colour == "gray" else COLOURS[background.colour], np.float32)
    if background.kind == "plain":
        weight = np.ones((SIZE, SIZE), np.float32)
    elif background.kind == "gradient":
        weight = np.repeat(np.linspace(1, 0.15, SIZE, dtype=np.float32)[:, None], SIZE, axis=1)
    else:
        stripes = (np.arange(SIZE) // 32 % 2 == 0).astype(np.float32)
        weight = np.repeat(stripes[:, None], SIZE, axis=1)
        weight = weight if background.kind == "horizontal" else weight.T
    return weight[..., None] * colour + (1 - weight[..., None]) * np.float32(255)


def render(scene: Scene, rng: np.random.Generator, placed: list[Placement] | None = None) -> np.ndarray:
    """Paint the scene at random positions (or at `placed`): uint8 [256, 256, 3]."""
    canvas = paint_background(scene.background)
    placed = arrange(scene, rng) if placed is None else placed
    order = reversed(range(len(placed)))  # an inner item comes first in the scene and is painted last
    for index in order:
        item, spot = scene.items[index], placed[index]
        reach = spot.radius * 1.08 + 2
        x0, x1 = max(0, int(spot.x - reach)), min(SIZE, int(spot.x + reach) + 1)
        y0, y1 = max(0, int(spot.y - reach)), min(SIZE, int(spot.y + reach) + 1)
        x = (np.arange(x0, x1) + 0.5 - spot.x) / spot.radius
        y = (np.arange(y0, y1) + 0.5 - spot.y) / spot.radius
        xs, ys = np.meshgrid(x, y)
        alpha = coverage(item.shape, xs, ys, 1 / spot.radius).astype(np.float32)[..., None]
        patch = canvas[y0:y1, x0:x1]
        canvas[y0:y1, x0:x1] = alpha * np.asarray(COLOURS[item.colour], np.float32) + (1 - alpha) * patch
    return np.round(canvas).astype(np.uint8)


def held_out_prompts(count: int, seed: int = 0) -> list[str]:
    """`count` different captions of scenes that training never saw, in all phrasings."""
    rng, prompts = np.random.default_rng(seed), dict[str, None]()
    while len(prompts) < count:
        scene = sample(rng)
        if scene.held_out:
            prompts[caption(scene, rng)] = None
    return list(prompts)

"""Captions of the demo world: `caption` puts a scene into words, `parse` reads words back into a scene."""

import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from demo_world.scenes import COLOURS, SHAPES, Background, Item, Scene, sample
from distrijax import DistrijaxError

EXAMPLE = Scene((Item("circle", "red"), Item("square", "blue")), "above")
PREFIXES = ("", "a picture of ", "an image of ", "a drawing of ", "there is ")
SIZE_WORDS = {"small": ("small", "tiny"), "medium": ("",), "large": ("large", "big")}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "center": ("in the center", "in the middle"),
    **{c: (f"in the {c} corner", f"in the {c}") for c in ("top left", "top right", "bottom left", "bottom right")},
}
TEMPLATES: dict[str, tuple[str, ...]] = {  # all phrasings of each arrangement, the plainest first
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


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Return the scene in words: in a random phrasing, or in the plainest one where `rng` is None."""

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
    text = pick(TEMPLATES[scene.arrangement]).format(**slots, s=phrase(scene.items[0], plural=True))
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
_PLACE_BY_WORDS = {words: place for place, options in PLACE_WORDS.items() for words in options}
_PLACE = r" (?P<{0}place>" + "|".join(sorted(_PLACE_BY_WORDS, key=len, reverse=True)) + ")"
_BACKGROUND = re.compile(
    r"(?:,? (?:on|with|against|in front of))? ?(?:an? |the )?"
    rf"(?P<colour>{_COLOUR}|gr[ae]y) ?(?P<kind>gradient|horizontally striped|vertically striped)? background$"
)


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Return (arrangement, expression) for every phrasing; the first that matches the whole text wins."""
    patterns = []
    for arrangement in ("places", *(a for a in TEMPLATES if a != "places")):
        for template in TEMPLATES[arrangement]:
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
    """Return the scene that `prompt` describes; the inverse of `caption`.

    Raises:
        DistrijaxError: The grammar has no such caption.
    """
    text = re.sub(r"\s+", " ", prompt.lower().strip(" .!")).replace("grey", "gray").replace("centre", "center")
    text = re.sub(r"^(?:(?:an?|the) )?(?:(?:picture|image|drawing|photo|painting) of )", "", text)
    text = re.sub(r"^there (?:is|are) ", "", text)
    background = Background()
    if match := _BACKGROUND.search(text):
        kind = (match["kind"] or "plain").removesuffix("ly striped")
        background = Background(kind, match["colour"])
        text = text[: match.start()].rstrip(" ,")
    for arrangement, pattern in _patterns():
        if match := pattern.match(text):
            groups = match.groupdict()
            items = tuple(_parse_item(groups, slot) for slot in "abc" if groups.get(f"{slot}shape"))
            items *= {"two": 2, "three": 3}.get(arrangement, 1)
            return Scene(items, arrangement, background)
    raise DistrijaxError(
        f"{prompt!r} is not a caption of the demo world. Write a caption like {caption(EXAMPLE)!r}; "
        f"colours: {', '.join(COLOURS)}; shapes: {', '.join(SHAPES)}."
    )


def _parse_item(groups: dict[str, str | None], slot: str) -> Item:
    word = groups.get(f"{slot}size") or ""
    size = next(size for size, words in SIZE_WORDS.items() if word in words)
    place = _PLACE_BY_WORDS.get(groups.get(f"{slot}place") or "")
    return Item(str(groups[f"{slot}shape"]), str(groups[f"{slot}colour"]), size, place)


def held_out_prompts(count: int, seed: int = 0) -> list[str]:
    """Return `count` different captions, in all phrasings, of scenes that are excluded from training."""
    rng, prompts = np.random.default_rng(seed), dict[str, None]()
    while len(prompts) < count:
        scene = sample(rng)
        if scene.held_out:
            prompts[caption(scene, rng)] = None
    return list(prompts)

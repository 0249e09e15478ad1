"""The demo world: captions and scenes are each other's inverse, drawings obey, and the check sees what is wrong."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from distrijax.demo import check, scenes
from distrijax.demo.scenes import Background, Item, Scene
from distrijax.errors import DistrijaxError

RED_ABOVE_BLUE = Scene((Item("circle", "red"), Item("square", "blue")), "above")


def drawn(count: int, seed: int) -> list[tuple[Scene, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(scene := scenes.sample(rng), scenes.render(scene, rng)) for _ in range(count)]


def test_a_caption_is_read_back_as_its_scene():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        scene = scenes.sample(rng)
        assert scenes.parse(scenes.caption(scene)) == scene
        assert scenes.parse(text := scenes.caption(scene, rng)) == scene, text


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle above a blue square",
        "A Red Circle above a Blue Square.",
        "a blue square below a red circle",
        "there is a red circle over the blue square",
        "a picture of red circle on top of  blue square",
        "a blue square with a red circle above it",
    ],
)
def test_phrasings_of_one_scene(prompt: str):
    assert scenes.parse(prompt) == RED_ABOVE_BLUE


def test_sizes_places_and_backgrounds_are_read():
    scene = scenes.parse("a tiny green star in the top left and a big pink ring at the bottom on a grey background")
    assert scene.background == Background("plain", "gray")
    assert scene.items == (Item("star", "green", "small", "top left"), Item("ring", "pink", "large", "bottom"))
    assert scenes.parse("three black crosses, blue gradient background").background == Background("gradient", "blue")
    assert scenes.parse("a red circle on a red vertically striped background").background.kind == "vertical"


@pytest.mark.parametrize("prompt", ["", "a cat", "a red", "a red hexagon", "a red circle above", "red blue circle"])
def test_what_is_no_caption_is_refused_with_an_example(prompt: str):
    with pytest.raises(DistrijaxError, match="a red circle above a blue square"):
        scenes.parse(prompt)


def test_held_out_prompts_are_unseen_and_repeatable():
    prompts = scenes.held_out_prompts(60, seed=3)
    assert prompts == scenes.held_out_prompts(60, seed=3)
    assert len(set(prompts)) == 60
    assert all(scenes.parse(prompt).held_out for prompt in prompts)
    swapped = Scene((Item("ring", "red"), Item("star", "blue")), "beside")
    assert swapped.held_out == replace(swapped, items=swapped.items[::-1]).held_out


def test_items_are_whole_and_apart():
    rng = np.random.default_rng(1)
    for _ in range(500):
        scene = scenes.sample(rng)
        placed = scenes.arrange(scene, rng)
        assert all(p.radius <= p.x <= scenes.SIZE - p.radius for p in placed)
        assert all(p.radius <= p.y <= scenes.SIZE - p.radius for p in placed)
        assert scene.arrangement == "inside" or not scenes._crowded(placed), scenes.caption(scene)


def test_the_check_passes_what_was_drawn():
    pairs = drawn(100, seed=2)
    wrong = {scenes.caption(scene): found for scene, picture in pairs if (found := check.check(picture, scene))}
    assert len(wrong) <= 1, wrong


def test_the_check_passes_no_other_caption():
    pairs = drawn(40, seed=4)
    for (scene, _), (other, picture) in pairwise(pairs):
        assert scene == other or check.check(picture, scene), (scenes.caption(scene), scenes.caption(other))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("a green circle above a blue square", "no green circle"),
        ("a red diamond above a blue square", "no red diamond"),
        ("a blue square above a red circle", "not from top to bottom"),
        ("a red circle to the left of a blue square", "not from left to right"),
        ("a large red circle above a blue square", "the red circle is not large"),
        ("a red circle at the bottom and a blue square at the top", "the red circle is not at the bottom"),
        ("a red circle", "also a blue square"),
        ("a red circle, a blue square and a blue star in a column", "no blue star"),
        ("a red circle inside a blue square", "not inside"),
        ("two red circles", "fewer than 2 such items"),
        ("a red circle above a blue square on a gray background", "no plain gray background"),
    ],
)
def test_the_check_names_what_is_wrong(wrong: str, complaint: str):
    picture = scenes.render(RED_ABOVE_BLUE, np.random.default_rng(5))
    assert check.check(picture, RED_ABOVE_BLUE) == []
    assert any(complaint in problem for problem in check.check(picture, scenes.parse(wrong)))


@pytest.mark.parametrize("radius", [22, 27, 36])
def test_a_star_is_one_without_the_last_of_its_tips_and_not_without_its_top(radius: int):
    x, y = np.meshgrid(np.arange(256) - 127.5, np.arange(256) - 127.5)
    star = scenes.coverage("star", x / radius, y / radius, 1 / radius) > 0.5
    worn = check._open(star)  # nothing thinner than 5 pixels is left
    top = np.flatnonzero(star.any(1))[0]
    broken = star & (y > top - 127.5 + 0.55 * radius)
    found = [check._describe(mask, check._box(mask), np.zeros_like(mask), "red") for mask in (star, worn, broken)]
    assert [f.shape for f in found] == ["star", "star", "patch"]
    assert found[2].overlap < check.MIN_OVERLAP - 0.1


def test_components_of_a_mask():
    mask = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1]], bool)
    assert sorted(int(part.sum()) for part in check.components(mask)) == [1, 1, 5]
    assert [int(part.sum()) for part in check.components(mask, least=2)] == [5]

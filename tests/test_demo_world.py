"""The demo world: captions and scenes are inverse, drawings match, and the judge sees what is wrong."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from distrijax import DistrijaxError

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from demo_world import captions, drawing, judge, scenes
from demo_world.scenes import Background, Item, Scene

RED_ABOVE_BLUE = Scene((Item("circle", "red"), Item("square", "blue")), "above")


def draw(count: int, seed: int) -> list[tuple[Scene, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(scene := scenes.sample(rng), drawing.render(scene, rng)) for _ in range(count)]


def test_the_tables_cover_every_word():
    """A name that is missing in one of them would fail only in the rare scenes that have it."""
    assert set(captions.TEMPLATES) == set(drawing.ANCHORS) == set(scenes.ARRANGEMENTS)
    assert set(captions.PLACE_WORDS) == set(drawing.CENTRES) == set(scenes.PLACES)
    assert set(captions.SIZE_WORDS) == set(drawing.RADII) == set(scenes.SIZES)


def test_a_caption_is_read_back_as_its_scene():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        scene = scenes.sample(rng)
        assert captions.parse(captions.caption(scene)) == scene
        assert captions.parse(text := captions.caption(scene, rng)) == scene, text


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
    assert captions.parse(prompt) == RED_ABOVE_BLUE


def test_sizes_places_and_backgrounds_are_read():
    scene = captions.parse("a tiny green star in the top left and a big pink ring at the bottom on a grey background")
    assert scene.background == Background("plain", "gray")
    assert scene.items == (Item("star", "green", "small", "top left"), Item("ring", "pink", "large", "bottom"))
    assert captions.parse("three black crosses, blue gradient background").background == Background("gradient", "blue")
    assert captions.parse("a red circle on a red vertically striped background").background.kind == "vertical"


@pytest.mark.parametrize("prompt", ["", "a cat", "a red", "a red hexagon", "a red circle above", "red blue circle"])
def test_what_is_no_caption_is_refused_with_an_example(prompt: str):
    with pytest.raises(DistrijaxError, match=captions.caption(captions.EXAMPLE)):
        captions.parse(prompt)


def test_held_out_prompts_are_unseen_and_repeatable():
    prompts = captions.held_out_prompts(60, seed=3)
    assert prompts == captions.held_out_prompts(60, seed=3)
    assert len(set(prompts)) == 60
    assert all(captions.parse(prompt).held_out for prompt in prompts)


def test_both_orders_of_items_side_by_side_are_held_out_together():
    rng = np.random.default_rng(6)
    beside = [scene for scene in (scenes.sample(rng) for _ in range(1500)) if scene.arrangement == "beside"]
    assert {scene.held_out for scene in beside} == {False, True}
    assert all(replace(scene, items=scene.items[::-1]).held_out == scene.held_out for scene in beside)


def test_items_are_whole_and_apart():
    rng = np.random.default_rng(1)
    for _ in range(500):
        scene = scenes.sample(rng)
        placements = drawing.arrange(scene, rng)
        assert all(p.radius <= p.x <= drawing.CANVAS - p.radius for p in placements)
        assert all(p.radius <= p.y <= drawing.CANVAS - p.radius for p in placements)
        assert scene.arrangement == "inside" or not drawing.crowded(placements), captions.caption(scene)


def test_the_judge_accepts_drawings():
    pairs = draw(100, seed=2)
    wrong = {captions.caption(scene): faults for scene, picture in pairs if (faults := judge.problems(picture, scene))}
    assert len(wrong) <= 1, wrong


def test_the_judge_rejects_drawings_of_other_captions():
    pairs = draw(40, seed=4)
    for (scene, _), (other, picture) in pairwise(pairs):
        assert scene == other or judge.problems(picture, scene), (captions.caption(scene), captions.caption(other))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a green circle above a blue square", "no green circle"),
        ("a red diamond above a blue square", "no red diamond"),
        ("a blue square above a red circle", "top to bottom"),
        ("a red circle to the left of a blue square", "left to right"),
        ("a large red circle above a blue square", "red circle not large"),
        ("a red circle at the bottom and a blue square at the top", "red circle not at bottom"),
        ("a red circle", "also blue square"),
        ("a red circle, a blue square and a blue star in a column", "no blue star"),
        ("a red circle inside a blue square", "not inside"),
        ("two red circles", "fewer 2"),
        ("a red circle above a blue square on a gray background", "no gray background"),
    ],
)
def test_the_judge_names_what_is_wrong(caption: str, words: str):
    """One of the problems has all of these words."""
    picture = drawing.render(RED_ABOVE_BLUE, np.random.default_rng(5))
    assert judge.problems(picture, RED_ABOVE_BLUE) == []
    problems = judge.problems(picture, captions.parse(caption))
    assert any(set(words.split()) <= set(problem.split()) for problem in problems), problems


def test_failures_are_the_pictures_with_problems():
    picture = drawing.render(RED_ABOVE_BLUE, np.random.default_rng(5))
    prompts = [captions.caption(RED_ABOVE_BLUE), "a green star"]
    failures = judge.failures(np.stack([picture, picture]), prompts)
    assert failures == [(prompts[1], judge.problems(picture, captions.parse(prompts[1])))]


@pytest.mark.parametrize("radius", [22, 27, 36])
def test_a_star_may_lack_its_tips_but_not_its_top(radius: int):
    x, y = np.meshgrid(np.arange(256) - 127.5, np.arange(256) - 127.5)
    star = drawing.coverage("star", x / radius, y / radius, 1 / radius) > 0.5
    worn = ndimage.binary_opening(star, np.ones((5, 5)))  # nothing thinner than 5 pixels is left
    top = np.flatnonzero(star.any(1))[0]
    broken = star & (y > top - 127.5 + 0.55 * radius)
    regions = [judge.describe(mask, np.zeros_like(mask), "red") for mask in (star, worn, broken)]
    assert [r.shape for r in regions] == ["star", "star", judge.BLOB]
    assert regions[2].iou < judge.MIN_IOU - 0.1


def test_regions_are_connected_by_their_sides_and_large():
    labels = np.full((drawing.CANVAS, drawing.CANVAS), -1)
    labels[10:30, 10:30] = 0
    labels[30:50, 30:50] = 0  # touches the first at a corner
    labels[100:120, 100:120] = 1
    labels[200:205, 200:205] = 1  # too small for an item
    boxes = [region.box for region in judge.find_regions(labels)]
    assert sorted(boxes) == [(10, 10, 30, 30), (30, 30, 50, 50), (100, 100, 120, 120)]


def test_an_item_may_cover_a_part_of_another():
    scene = captions.parse("a small white star inside a large blue circle")
    labels = judge.label(drawing.render(scene, np.random.default_rng(8)), scene.background)
    assert sorted((r.colour, r.shape) for r in judge.find_regions(labels)) == [("blue", "circle"), ("white", "star")]

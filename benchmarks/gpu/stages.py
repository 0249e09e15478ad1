"""The stages of a run, in order of what is least known and worth most.

Known are SDXL's steps on an H200 before the host's part in a dispatch was mended (docs/measurements). Not known: steps
since then, what the variants change, profiles by operation, diffusers compiled by torch for speed, the first picture.
"""

import dataclasses
from functools import partial

from gpu import card, correct, peers, pictures, steps
from gpu.driver import Stage
from gpu.variants import VARIANTS


def _step(size: int, devices: int) -> dict[str, Stage]:
    return {_name(size, devices): Stage(partial(steps.measure, size=size, devices=devices), 50, "steps")}


def _operations(size: int, devices: int) -> dict[str, Stage]:
    name = f"{_name(size, devices)}, by operation"
    return {name: Stage(partial(steps.operations, size=size, devices=devices), 45, "steps")}


def _variants(size: int, devices: int, first: int, last: int | None = None) -> dict[str, Stage]:
    stages = {}
    for name in list(VARIANTS)[first:last]:
        stage = f"{_name(size, devices)}, {name}"
        run = partial(steps.compare, size=size, devices=devices, name=name)
        stages[stage] = Stage(run, 65 if VARIANTS[name].tunes else 45, stage if VARIANTS[name].tunes else "steps")
    return stages


def _name(size: int, devices: int) -> str:
    return f"{size}, one" if devices == 1 else f"{size}, one of {devices}"


def _diffusers(size: int, seconds: float, *modes: str) -> dict[str, Stage]:
    name = ", ".join([f"{size}, diffusers", *modes])
    return {name: Stage(lambda setup: peers.diffusers(setup, size, *modes), seconds, name)}


def table(*, tiny: bool) -> dict[str, Stage]:
    """Return the stages in their order. With a tiny model none is skipped, however little time is left."""
    return {name: dataclasses.replace(stage, seconds=0) if tiny else stage for name, stage in STAGES.items()}


STAGES: dict[str, Stage] = {
    "card": Stage(card.ceilings, 30, "card"),
    **_step(1024, 8),
    **_variants(1024, 8, 0, 3),
    **_step(1024, 1),
    **_operations(1024, 8),
    **_diffusers(1024, 180, "reduce-overhead"),
    **_variants(1024, 8, 3, 8),
    "attention": Stage(correct.attention, 20, "steps"),
    "first picture": Stage(partial(pictures.first, again=False), 130, "first picture"),
    "first picture, kept programs": Stage(partial(pictures.first, again=True), 50, "next picture"),
    **_variants(1024, 1, 0, 8),
    **_operations(1024, 1),
    "demo pictures": Stage(correct.pictures, 90, "correct"),
    "demo pictures of eight patches": Stage(correct.eight_patches, 90, "correct"),
    **_step(3840, 8),
    **_step(3840, 1),
    **_step(2048, 8),
    **_step(1024, 2),
    **_step(1024, 4),
    **_diffusers(1024, 240, "max-autotune-no-cudagraphs"),
    **_variants(1024, 8, 8),
    **_step(2048, 1),
    **_diffusers(2048, 90),
    **_diffusers(3840, 100),
}

OF_EACH_KIND = (  # what runs with a tiny model
    "card",
    "1024, one of 8",
    "1024, one of 8, convolutions in CUDA graphs",
    "1024, one",
    "1024, one of 8, by operation",
    "1024, diffusers, reduce-overhead",
    "1024, one of 8, GELU by an exponential",
    "1024, one of 8, no split-K",
    "attention",
    "first picture",
    "first picture, kept programs",
    "demo pictures",
    "demo pictures of eight patches",
)

"""The runs of pictures that take several, and the memory of their models; nothing is compiled."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from distrijax.checkpoint import find
from distrijax.errors import DistrijaxError
from distrijax.tools.plan import runs
from distrijax.tools.workload import Workload

BASE = Workload(find("sdxl-base"), 1024, 1024, "bfloat16", steps=50)
REFINER = find("sdxl-refiner")


def test_a_refiner_takes_the_last_steps() -> None:
    first, second = runs.runs_of(BASE, refiner=REFINER)
    assert (first.model.name, first.steps) == ("sdxl-base", 40)
    assert (second.model.name, second.steps) == ("sdxl-refiner", 10)
    assert [run.steps for run in runs.runs_of(BASE, refiner=REFINER, switch_at=0.5)] == [25, 25]
    assert runs.runs_of(BASE) == [BASE]


def test_a_second_size_takes_a_part_of_the_steps() -> None:
    first, second = runs.runs_of(BASE, upscale=1.5)
    assert first == BASE
    assert second == dataclasses.replace(BASE, height=1536, width=1536, steps=17)
    steps = [(run.height, run.model.name, run.steps) for run in runs.runs_of(BASE, upscale=2, refiner=REFINER)]
    assert steps == [
        (1024, "sdxl-base", 40),
        (1024, "sdxl-refiner", 10),
        (2048, "sdxl-base", 7),  # the 17 last of 50, of which the refiner takes 10
        (2048, "sdxl-refiner", 10),
    ]


def test_memory_of_all_models() -> None:
    """In GB: 6.9 of SDXL's weights in bfloat16, of which 5.1 are the U-Net's, and 6.1 and 4.5 of the refiner's."""
    held = [9_000_000_000, 8_000_000_000]  # as a plan has it: all weights of its own model, and what its steps take
    plans: Any = [
        SimpleNamespace(request=SimpleNamespace(workload=run), memory=size)
        for run, size in zip(runs.runs_of(BASE, refiner=REFINER), held, strict=True)
    ]
    unet, all_of_refiner = 2 * REFINER.components["unet"].parameters, 2 * REFINER.parameters
    assert unet == 2 * 2_259_526_660
    assert runs.memory(plans, offload=False) == max(held[0] + all_of_refiner, held[1] + 2 * BASE.model.parameters)
    assert runs.memory(plans, offload=True) == held[0] + all_of_refiner - unet
    assert runs.memory(plans[:1], offload=False) == held[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upscale": 0.5}, "upscale is 0.5"),
        ({"upscale": 2, "strength": 2.0}, "strength is 2.0"),
        ({"refiner": REFINER, "switch_at": 1.0}, "must be a number between 0 and 1"),
        ({"refiner": REFINER, "switch_at": 0.3, "upscale": 2}, "leaves none of 50 steps"),
    ],
)
def test_bad_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DistrijaxError, match=message):
        runs.runs_of(BASE, **options)

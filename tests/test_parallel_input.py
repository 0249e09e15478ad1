"""What cannot be spread is refused before anything is loaded or compiled, with the value, the rule and a way out."""

import dataclasses
import re
import warnings
from typing import Any

import jax
import numpy as np
import pytest
from parallel_helpers import small_pipeline

from distrijax import DistrijaxError, Parallel

PROMPT = "a red circle"
WHOLE = "it must be a whole number"


def refused(call: Any, *parts: str) -> None:
    """Refused with a message that has all `parts`."""
    with pytest.raises(DistrijaxError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), (part, str(caught.value))


@pytest.mark.parametrize("name", ["data", "cfg", "patch", "warmup_steps"])
def test_numbers(name: str) -> None:
    least = 0 if name == "warmup_steps" else 1
    for value in (-1, least - 1, 1.5, 2.0, True, "2", None, float("nan"), [1]):
        refused(lambda value=value: Parallel(**{name: value}), f"{name} is {value!r}", f"{WHOLE}, {least} or more")
    assert getattr(Parallel(**{name: np.int64(1)}), name) == 1


@pytest.mark.parametrize(
    ("choices", "parts"),
    [
        ({"cfg": 3}, ["cfg is 3", "two guidance branches", "1 or 2"]),
        ({"mode": "corrected"}, ["mode is 'corrected'", "corrected_async_gn", "full_sync", "naive_patch"]),
        ({"mode": None}, ["mode is None", "full_sync"]),
        ({"mode": "tensor", "patch": 2, "emulate": True}, ["'tensor'", "cannot be emulated", "leave out emulate"]),
        ({"emulate": "no"}, ["emulate is 'no'", "True or False"]),
        ({"devices": ()}, ["devices is ()", "one device or more"]),
        ({"devices": (jax.devices()[0],) * 2, "patch": 2}, ["each of them once"]),
        # Eight devices are there, as in `conftest`.
        (
            {"cfg": 2, "patch": 8},
            ["data=1 x cfg=2 x patch=8 takes 16 devices, but there are 8", "such as cfg=2 x patch=4", "emulate=True"],
        ),
        ({"patch": 4, "devices": tuple(jax.devices()[:3])}, ["takes 4 devices, but there are 3", "cfg=1 x patch=3"]),
    ],
)  # fmt: skip
def test_choices(choices: dict[str, Any], parts: list[str]) -> None:
    refused(lambda: Parallel(**choices), *parts)


def test_automatic_choice() -> None:
    def auto(**choices: Any) -> tuple[int, int, int]:
        parallel = Parallel.auto(**choices)
        return parallel.data, parallel.cfg, parallel.patch

    assert auto() == (1, 2, 4)
    assert auto(guided=False, pictures=6) == (2, 1, 4)
    assert auto(pictures=8) == (8, 1, 1)
    assert auto(devices=jax.devices()[:3]) == (1, 1, 3)
    for pictures in (0, -1, 1.5, "2"):
        refused(lambda p=pictures: Parallel.auto(pictures=p), f"pictures is {pictures!r}", f"{WHOLE}, 1 or more")


def make(parallel: Parallel, **call: Any) -> np.ndarray:
    pipe = small_pipeline()
    pipe.parallel = parallel
    options = {"prompt": PROMPT, "num_inference_steps": 2, "seed": 1, "height": 64, "width": 64}
    return np.asarray(pipe(**(options | {"output_type": "latent"} | call)).images)


@pytest.mark.parametrize(
    ("choices", "call", "parts"),
    [
        ({"patch": 5}, {}, ["patch is 5", "only 8 high, and each device takes 2 rows", "choose patch=4 or less"]),
        ({"patch": 2}, {"height": 16}, ["patch is 2", "choose patch=1 or less, or a taller picture"]),
        ({"cfg": 2}, {"guidance_scale": 1.0}, ["cfg is 2", "guidance_scale is 1.0", "use cfg=1, patch=2"]),
        ({"cfg": 2, "patch": 3}, {"guidance_scale": 0}, ["guidance_scale is 0", "use cfg=1, patch=6"]),
        ({"data": 2}, {}, ["1 pictures cannot be divided among data=2", "ask for 2"]),
        ({"data": 2}, {"prompt": [PROMPT] * 3}, ["3 pictures cannot be divided among data=2", "ask for 4"]),
        ({"data": 4}, {"num_images_per_prompt": 6}, ["6 pictures cannot be divided among data=4", "ask for 8"]),
    ],
)  # fmt: skip
def test_calls(choices: dict[str, Any], call: dict[str, Any], parts: list[str]) -> None:
    compiled = small_pipeline().programs.seconds["compiling"]
    refused(lambda: make(Parallel(**choices, emulate=True), **call), *parts)
    assert small_pipeline().programs.seconds["compiling"] == compiled


@pytest.mark.parametrize("value", ["2", None, 1.5, True, 0, -2])
def test_number_of_pictures(value: Any) -> None:
    refused(
        lambda: make(Parallel(data=2, emulate=True), num_images_per_prompt=value), f"{value!r}", "num_images_per_prompt"
    )


def test_distilled_models_have_one_branch() -> None:
    """Of an LCM, guidance is an input: at any scale there is no second branch for other devices."""
    unet = small_pipeline().unet
    before, unet.config = unet.config, dataclasses.replace(unet.config, time_cond_proj_dim=8)
    try:
        refused(
            lambda: make(Parallel(cfg=2, patch=2, emulate=True), guidance_scale=8.0),
            "cfg is 2", "this model takes it as an input", "use cfg=1, patch=4",
        )  # fmt: skip
    finally:
        unet.config = before


def test_fewer_steps_than_the_warm_up_needs() -> None:
    """No error: all steps are synchronous, which a warning says, at the caller's line."""
    two = {"patch": 2, "emulate": True}
    with pytest.warns(
        UserWarning, match=re.escape("all 2 steps are synchronous: the first and warmup_steps=4")
    ) as told:
        image = make(Parallel(**two))
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = make(Parallel(**two, mode="full_sync"))  # it waits in every step anyway: nothing to warn of
        displaced = make(Parallel(**two, warmup_steps=0))
    # The same arithmetic in another program: roundings differ. A displaced step differs by 1e-3 and more.
    assert np.abs(image - exact).max() <= 1e-5 * exact.std()
    assert np.abs(displaced - exact).max() > 1e-4 * exact.std()

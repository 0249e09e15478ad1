"""What every step sees beside the latents, and what happens after a step: the places that inpainting needs."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from parallel_helpers import DPM, FAST, GUIDANCE, SMALLER, STATIC, with_random_weights

from distrijax import Parallel, UNet, UNetConfig
from distrijax.nn.module import Weights
from distrijax.sampling import programs
from distrijax.sampling.denoise import EXTRA_CHANNELS, Maps, Steps
from distrijax.sampling.inputs import TextInputs, loop_inputs

HEIGHT, WIDTH, STEPS = 9, 7, 3
rng = np.random.RandomState(0)
TEXT = TextInputs(*(rng.randn(2, 1, *shape).astype(np.float32) for shape in ((5, 12), (8,), (6,))))
LATENTS, CLEAN = (rng.randn(1, HEIGHT, WIDTH, 4).astype(np.float32) for _ in range(2))
EXTRA = rng.randn(1, HEIGHT, WIDTH, 5).astype(np.float32)
MASK = (rng.rand(1, HEIGHT, WIDTH, 1) < 0.5).astype(np.float32)
_denoise = jax.jit(programs.denoise, static_argnames=(*STATIC, "after_step"), compiler_options=FAST)


@cache
def unet() -> UNet:
    return with_random_weights(UNet, UNetConfig.from_json(SMALLER | {"in_channels": 9}))


def blend(latents: Array, now: Steps, maps: Maps) -> Array:
    return (1 - maps["mask"]) * maps["clean"] + maps["mask"] * latents


def run(parallel: Parallel, extra: np.ndarray = EXTRA, mask: np.ndarray = MASK) -> np.ndarray:
    layout = parallel.layout(HEIGHT, unet().config.row_multiple)
    inputs = loop_inputs(
        Weights.of(unet()), TEXT, LATENTS, None, GUIDANCE, DPM.schedule(STEPS),
        scheduler=DPM, parallel=parallel, layout=layout,
        condition=jax.jit(programs.condition, static_argnames="parallel"),
        maps={EXTRA_CHANNELS: extra, "mask": mask, "clean": CLEAN},
    )  # fmt: skip
    static: dict[str, Any] = {"parallel": parallel.program_key, "layout": layout, "scheduler": DPM}
    ((_, phase),) = parallel.phases(STEPS)
    carry, _, _ = _denoise(*inputs.with_steps(0, STEPS, parallel), **static, phase=phase, after_step=blend)
    return np.asarray(carry.latents)[:, :HEIGHT]


@pytest.mark.parametrize("choices", [{"patch": 3}, {"cfg": 2, "patch": 2}, {"patch": 4, "emulate": True}], ids=str)
def test_any_mesh_equals_one_device(choices: dict[str, Any]) -> None:
    """The blend is elementwise, and extra channels are rows like any: 1e-5 is the rounding of sums in another order."""
    one, several = run(Parallel()), run(Parallel(**choices, mode="full_sync"))
    assert np.abs(several - one).max() < 1e-5 * np.abs(one).max()


def test_the_blend_keeps_what_is_not_masked() -> None:
    final = run(Parallel())
    kept = np.broadcast_to(MASK == 0, CLEAN.shape)
    np.testing.assert_array_equal(final[kept], CLEAN[kept])
    assert np.abs(final - CLEAN)[~kept].min() > 0


def test_the_unet_sees_the_extra_channels() -> None:
    assert np.abs(run(Parallel(), extra=jnp.zeros_like(EXTRA)) - run(Parallel())).max() > 1e-3

"""Runs that begin at a later step, from a picture, against diffusers after `set_begin_index` and its `add_noise`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from test_schedulers import (
    AYS,
    AYS_SIGMAS,
    DPM_FORMS,
    FINALS,
    LOOSE,
    PREDICTIONS,
    SDXL,
    SHAPE,
    SPACINGS,
    TOLERANCE,
    ZERO_SNR,
    Pair,
    grid,
    label,
    prediction,
)

from distrijax.errors import DistrijaxError
from distrijax.sampling.noise import TorchGenerator
from distrijax.schedulers import SCHEDULERS, scheduler_from_config

pytestmark = [pytest.mark.fast, pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")]

# (steps, first step that runs): DPM-Solver++ lowers its order at the end of runs of less than 15 steps
BEGINNINGS = [(8, 1), (8, 6), (8, 7), (18, 9), (18, 16)]

CLEAN, NOISE = prediction(1000), prediction(1001)

KINDS: dict[str, list[dict[str, Any]]] = {
    "euler": [
        *grid(timestep_spacing=SPACINGS, prediction_type=PREDICTIONS),
        *grid(use_karras_sigmas=[True], final_sigmas_type=FINALS),
        *grid(interpolation_type=["linear", "log_linear"], use_exponential_sigmas=[False, True]),
        {"use_beta_sigmas": True},
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
        {**ZERO_SNR, "prediction_type": "v_prediction"},
    ],
    "euler_ancestral": grid(timestep_spacing=SPACINGS, prediction_type=["epsilon", "v_prediction"]),
    "ddim": [
        *grid(timestep_spacing=SPACINGS, prediction_type=PREDICTIONS, clip_sample=[False]),
        *grid(set_alpha_to_one=[False, True], clip_sample=[True]),
        {**ZERO_SNR, "prediction_type": "epsilon"},  # the first step has no signal to divide by, the later ones do
    ],
    "lcm": [*grid(prediction_type=PREDICTIONS), {"clip_sample": True}],
    "tcd": grid(prediction_type=PREDICTIONS),
    "dpmsolver++": [
        *grid(**DPM_FORMS, solver_type=["midpoint", "heun"], lower_order_final=[True, False]),
        *grid(**DPM_FORMS, euler_at_final=[True, False], lower_order_final=[False], final_sigmas_type=["sigma_min"]),
        *grid(**DPM_FORMS, use_karras_sigmas=[True]),
        *grid(timestep_spacing=SPACINGS, prediction_type=PREDICTIONS),
        *grid(use_beta_sigmas=[True], solver_order=[2, 3]),
        *grid(use_lu_lambdas=[True], solver_order=[2, 3]),
        *grid(use_exponential_sigmas=[True], solver_order=[2, 3]),
        {**ZERO_SNR, "prediction_type": "v_prediction"},
    ],
    "unipc": [
        *grid(solver_order=[1, 2, 3], disable_corrector=[[], [0], [0, 1, 4], [4, 6]]),
        *grid(solver_order=[1, 2, 3], solver_type=["bh1"], final_sigmas_type=["sigma_min"]),
        *grid(solver_order=[2, 3], lower_order_final=[False], final_sigmas_type=["sigma_min"]),
        *grid(predict_x0=[False], solver_order=[2], final_sigmas_type=["sigma_min"]),
        *grid(timestep_spacing=SPACINGS, prediction_type=PREDICTIONS),
        *grid(use_karras_sigmas=[True], solver_order=[2, 3]),
        {"use_beta_sigmas": True},
        {"use_exponential_sigmas": True},
    ],
}
ETAS = {"ddim": 0.5, "tcd": 0.3}


def check_noise(pair: Pair) -> None:
    """The latents at the start of each step, as image-to-image makes them: before the first call of `step`.

    Two products and a sum, with two factors that are each a root or two away from equal tables: four roundings of
    6e-8 of the largest term.
    """
    for step in range(len(pair.schedule)):
        index = pair.begin + step
        if hasattr(pair.theirs, "set_begin_index"):
            pair.theirs.set_begin_index(index)
        timestep = pair.theirs.timesteps[index : index + 1]
        expected = pair.theirs.add_noise(torch.from_numpy(CLEAN), torch.from_numpy(NOISE), timestep).numpy()
        got = pair.schedule.add_noise(CLEAN, NOISE, step)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=2.5e-7 * max(1, np.abs(expected).max()))
    if hasattr(pair.theirs, "set_begin_index"):
        pair.theirs.set_begin_index(pair.begin)


def check_run(pair: Pair, tolerance: float) -> None:
    """From a noisy picture to the end, each on its own: errors of single steps add up."""
    ours, schedule = pair.ours, pair.schedule
    sample: Any = schedule.add_noise(CLEAN, NOISE)
    expected, scale = np.array(sample), 1.0
    state, noise = ours.init_state(sample), TorchGenerator(11)
    for index in range(len(schedule)):
        coefficients = {name: values[index] for name, values in schedule.coefficients.items()}
        fresh = noise.randn(SHAPE) if schedule.draws[index] else None
        scale = max(scale, np.abs(expected).max())
        expected = pair.step_theirs(index, expected, prediction(index))
        sample, state = ours.step(coefficients, state, prediction(index), sample, fresh)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(sample, expected, rtol=0, atol=tolerance * len(schedule) * scale)


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, kinds in KINDS.items() for options in kinds], ids=label
)
def test_the_rest_of_a_run(name: str, options: dict[str, Any]) -> None:
    multistep = name in ("dpmsolver++", "unipc")
    loose = multistep and (options.get("solver_order") == 3 or not options.get("predict_x0", True))
    tolerance = LOOSE if loose else TOLERANCE
    for steps, begin in BEGINNINGS:
        pair = Pair(name, options, steps, ETAS.get(name, 0.0), begin)
        check_noise(pair)
        pair.check(tolerance)
        check_run(Pair(name, options, steps, ETAS.get(name, 0.0), begin), tolerance)


@pytest.mark.parametrize("name", ["euler", "dpmsolver++", "lcm", "tcd"])
def test_the_rest_of_custom_timesteps(name: str) -> None:
    lists = [AYS, [850.25, 640.5, 430.75, 20.5]] if name == "euler" else [AYS]
    for timesteps in lists:
        for begin in (1, len(timesteps) - 1):
            pair = Pair(name, {}, None, ETAS.get(name, 0.0), begin, timesteps=timesteps)
            check_noise(pair)
            pair.check()


def test_the_rest_of_custom_sigmas() -> None:
    for begin in (0, 4, 9):
        pair = Pair("euler", {}, None, 0.0, begin, sigmas=AYS_SIGMAS)
        check_noise(pair)
        pair.check()


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_a_whole_run_of_noise_levels(name: str) -> None:
    pair = Pair(name, {"timestep_spacing": "leading", "skip_prk_steps": True}, 10)
    check_noise(pair)
    signal, noise = pair.schedule.signal, pair.schedule.noise_level
    assert signal.dtype == noise.dtype == np.float32
    preserving = signal[0] < 1
    power = signal**2 + (noise**2 if preserving else 0)
    np.testing.assert_allclose(power, 1, rtol=3e-7)  # a rounding of each square and of the sum
    _, first = np.unique(pair.schedule.step_of, return_index=True)
    assert np.all(np.diff(noise[first]) < 0)
    assert pair.ours.order == pair.theirs.order


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_what_a_start_leaves_as_it_is(name: str) -> None:
    """One-step schedulers cut their tables, multistep solvers only from where the history is complete again."""
    ours = scheduler_from_config({**SDXL, "skip_prk_steps": True}, name)
    whole, rest = ours.schedule(10), ours.schedule(10, start=3)
    cut = 3 * ours.order
    assert rest.steps == 7
    assert len(rest) == len(whole) - cut
    assert rest.init_noise_sigma == whole.init_noise_sigma
    for field in ("timesteps", "signal", "noise_level", "draws"):
        np.testing.assert_array_equal(getattr(rest, field), getattr(whole, field)[cut:])
    # PLMS takes its first step twice. LMS knows its weights; the derivatives that it has not are zeros.
    history = {"dpmsolver++": 1, "edm_dpmsolver++": 1, "dpmsolver_singlestep": 1, "unipc": 2, "pndm": 5}.get(name, 0)
    for key, values in rest.coefficients.items():
        np.testing.assert_array_equal(values[history:], whole.coefficients[key][cut + history :])
    differ = any(np.any(values != whole.coefficients[key][cut:]) for key, values in rest.coefficients.items())
    assert differ == (history > 0)


def test_a_schedule_is_cut_at_its_end_only() -> None:
    schedule = scheduler_from_config(SDXL, "dpmsolver++").schedule(10)
    assert len(schedule[:4]) == len(schedule[0:4]) == len(schedule[:-6]) == 4
    for part in (slice(1, None), slice(None, None, 2), slice(-3, None)):
        with pytest.raises(DistrijaxError, match=r"use schedule\(\.\.\., start=n\)"):
            schedule[part]
    short = schedule[:4]
    np.testing.assert_array_equal(short.add_noise(CLEAN, NOISE, 3), schedule.add_noise(CLEAN, NOISE, 3))
    for step in (4, -1):
        with pytest.raises(DistrijaxError, match=f"step is {step}; .*from 0 to 3"):
            short.add_noise(CLEAN, NOISE, step)


def test_noise_is_added_in_float32_on_host_and_device() -> None:
    schedule = scheduler_from_config(SDXL, "ddim").schedule(10)
    assert isinstance(schedule.add_noise(CLEAN, NOISE), np.ndarray)
    half = jnp.asarray(CLEAN, jnp.bfloat16)
    got = schedule.add_noise(half, CLEAN.astype(np.float64))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, schedule.add_noise(np.asarray(half, np.float32), CLEAN))

"""Whole trajectories of the samplers with a smooth model, against diffusers': every option, from every beginning."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules
from test_scheduler_start import check_noise
from test_schedulers import FINALS, PREDICTIONS, SDXL, SHAPE, SPACINGS, Pair, grid, label

from distrijax.errors import DistrijaxError
from distrijax.sampling.noise import TorchGenerator
from distrijax.schedulers import SCHEDULERS, scheduler_from_config

pytestmark = [pytest.mark.fast, pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")]

# Forty evaluations at most, each with a few roundings of 6e-8 of the largest value; measured 4e-6.
TOLERANCE = 1e-5

FORMULAS = [{option: True} for option in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")]
SIGMA_SPACE = [
    *grid(prediction_type=["epsilon", "v_prediction"], timestep_spacing=SPACINGS),
    *FORMULAS,
    {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True},
]
KINDS: dict[str, list[dict[str, Any]]] = {
    "heun": [
        *SIGMA_SPACE,
        {"prediction_type": "sample"},
        *grid(clip_sample=[True], clip_sample_range=[1.0, 0.4], prediction_type=PREDICTIONS),
        {"beta_schedule": "exp"},
    ],
    "dpm2": SIGMA_SPACE,
    "dpm2_ancestral": SIGMA_SPACE,
    "dpm_sde": SIGMA_SPACE,
    "lms": [*SIGMA_SPACE, {"prediction_type": "sample"}],
    "dpmsolver_singlestep": [
        *grid(
            algorithm_type=["dpmsolver++", "sde-dpmsolver++"],
            solver_order=[1, 2, 3],
            solver_type=["midpoint", "heun"],
            lower_order_final=[False, True],
        ),
        *grid(solver_order=[2, 3], final_sigmas_type=["sigma_min"], lower_order_final=[False, True]),
        *grid(prediction_type=["v_prediction", "sample"], use_karras_sigmas=[False, True]),
        *FORMULAS,
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {"algorithm_type": "deis", "solver_type": "logrho"},
    ],
    "pndm": [
        *grid(timestep_spacing=SPACINGS, prediction_type=["epsilon", "v_prediction"], skip_prk_steps=[True]),
        *grid(set_alpha_to_one=[True], skip_prk_steps=[True]),
        *grid(timestep_spacing=SPACINGS, prediction_type=["epsilon", "v_prediction"], skip_prk_steps=[False]),
    ],
    "ddpm": [
        *grid(timestep_spacing=SPACINGS, prediction_type=PREDICTIONS, clip_sample=[False]),
        *grid(variance_type=["fixed_small", "fixed_small_log", "fixed_large"], clip_sample=[True, False]),
        {"clip_sample_range": 0.4},
        *grid(beta_schedule=["sigmoid", "laplace"], clip_sample=[False]),
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "clip_sample": False},
    ],
    "edm_euler": [
        *grid(prediction_type=["epsilon", "v_prediction"], sigma_schedule=["karras", "exponential"]),
        *grid(final_sigmas_type=FINALS, sigma_max=[120.0], sigma_data=[1.0], rho=[5.0]),
    ],
    "edm_dpmsolver++": [
        *grid(prediction_type=["epsilon", "v_prediction"], sigma_schedule=["karras", "exponential"]),
        *grid(solver_order=[1, 2, 3], solver_type=["midpoint", "heun"], lower_order_final=[False, True]),
        *grid(solver_order=[1, 2], algorithm_type=["sde-dpmsolver++"], solver_type=["midpoint", "heun"]),
        # without euler_at_final, the last of many steps goes from sigma_min to itself: rounding divided by rounding
        *grid(solver_order=[2, 3], euler_at_final=[True], final_sigmas_type=["sigma_min"]),
        {"sigma_max": 120.0, "sigma_data": 1.0, "rho": 5.0},
    ],
}
NEW = [(name, options) for name, kinds in KINDS.items() for options in kinds]


def model(latents: np.ndarray, timestep: float, kind: str) -> np.ndarray:
    """A prediction that depends smoothly on both, and does not blow the latents up."""
    wave = np.sin(3 * latents + np.float32(timestep / 300))
    return (latents if kind == "epsilon" else -latents / 2) * np.float32(0.9) + np.float32(0.1) * wave


def follow(pair: Pair, tolerance: float = TOLERANCE) -> None:
    """Both from the same latents to the end, each with its own."""
    ours, theirs, schedule = pair.ours, pair.theirs, pair.schedule
    timesteps = theirs.timesteps[pair.begin :]
    assert len(schedule) == len(timesteps)
    # Ancestral DPM2 looks up the timestep of a level that diffusers computes with a cancellation.
    near = {"rtol": 1e-5, "atol": 2e-2} if "Ancestral" in ours.class_name else {"rtol": 2e-6, "atol": 1e-6}
    np.testing.assert_allclose(schedule.timesteps, timesteps.numpy(), **near)
    np.testing.assert_allclose(schedule.init_noise_sigma, float(theirs.init_noise_sigma), rtol=3e-7)
    mine = pair.first()
    yours, state, noise = np.array(mine), ours.init_state(mine), TorchGenerator(11)
    scale = 1.0
    for row, timestep in enumerate(timesteps):
        coefficients = {name: values[row] for name, values in schedule.coefficients.items()}
        fresh = noise.randn(SHAPE) if schedule.draws[row] else None
        scale = max(scale, np.abs(yours).max())
        seen = np.asarray(ours.scale_model_input(coefficients, mine))
        prediction = model(seen, float(timestep), ours.prediction_type)
        mine, state = ours.step(coefficients, state, prediction, mine, fresh)
        seen = theirs.scale_model_input(torch.from_numpy(np.array(yours)), timestep).numpy()
        yours = pair.step_theirs(row, yours, model(seen, float(timestep), ours.prediction_type))
    assert np.isfinite(yours).all()
    np.testing.assert_allclose(np.asarray(mine), yours, rtol=0, atol=tolerance * scale)
    # both generators are at the same place: as many draws as diffusers made, in the same order
    np.testing.assert_array_equal(noise.randn((3,)), torch.randn(3, generator=pair.generator).numpy())


@pytest.mark.parametrize(("name", "options"), NEW, ids=label)
def test_trajectories(name: str, options: dict[str, Any]) -> None:
    cannot_start_later = name == "pndm" and not options["skip_prk_steps"]
    # An odd number of steps, for the groups of the singlestep solver; and begin where the order rises and falls.
    for steps, begin in [(20, 0)] if cannot_start_later else [(20, 0), (20, 1), (20, 10), (21, 20)]:
        pair = Pair(name, options, steps, begin=begin)
        if not options.get("rescale_betas_zero_snr"):  # the levels next to the last have few digits left
            check_noise(pair)
        # diffusers' third order has a term of the wrong sign in this form, and so it magnifies every rounding
        wrong = name == "dpmsolver_singlestep" and options.get("solver_order") == 3
        wrong &= options.get("algorithm_type") == "sde-dpmsolver++" and options.get("solver_type") == "heun"
        follow(pair, 3e-3 if wrong else TOLERANCE)


@pytest.mark.parametrize("name", list(KINDS))
def test_few_steps(name: str) -> None:
    for steps in (4, 5) if name == "pndm" else (1, 2, 3, 4):
        for karras in (False, True):
            # From sigma 14.6 to 0.03 in a step, what diffusers rounds in (x - x0) / sigma counts 250 times.
            follow(Pair(name, {"use_karras_sigmas": karras, "clip_sample": False}, steps), 1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_few_steps_of_plms(steps: int) -> None:
    for begin in range(steps):
        follow(Pair("pndm", {"skip_prk_steps": True}, steps, begin=begin))


@pytest.mark.parametrize("name", ["heun", "dpmsolver_singlestep", "ddpm"])
def test_custom_timesteps(name: str) -> None:
    timesteps = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    for begin in (0, 1, 9):
        follow(Pair(name, {"clip_sample": False}, None, begin=begin, timesteps=timesteps))
    follow(Pair(name, {"clip_sample": False}, None, timesteps=[999]))


def test_align_your_steps() -> None:
    """Ten steps as diffusers has them; others between these, at levels equally far apart in the logarithm."""
    for name in ("euler", "dpmsolver++", "lcm"):
        ours = scheduler_from_config(SDXL, name)
        timesteps = ours.schedule(10, timesteps="ays").timesteps
        assert timesteps.tolist() == AysSchedules["StableDiffusionXLTimesteps"]
    every_other = ours.schedule(20, timesteps="ays").timesteps[::2]
    assert np.abs(every_other - timesteps).max() <= 2  # the published timesteps and levels do not agree exactly
    assert [len(ours.schedule(n, timesteps="ays")) for n in (1, 4, 7, 50)] == [1, 4, 7, 50]


@pytest.mark.parametrize("name", [name for name, kind in SCHEDULERS.items() if kind.order == 2])
def test_two_evaluations_are_one_step(name: str) -> None:
    ours = scheduler_from_config({}, name)
    for start in (0, 3):
        schedule = ours.schedule(8, start=start)
        assert len(schedule) == 2 * (8 - start) - 1
        assert schedule.steps == 8 - start
        np.testing.assert_array_equal(schedule.step_of, np.arange(len(schedule)) // 2)
        assert not schedule.draws[-1]
    assert ours.schedule(8)[:4].steps == 2
    assert ours.schedule(8)[:5].steps == 3  # the first evaluation of the third


def test_steps_of_pndm() -> None:
    plms = scheduler_from_config({"skip_prk_steps": True}, "pndm")
    assert plms.schedule(5).step_of.tolist() == [0, 0, 1, 2, 3, 4]
    assert plms.schedule(5, start=3).step_of.tolist() == [0, 0, 1]
    assert scheduler_from_config({}, "pndm").schedule(5).step_of.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3, 4]


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_noise_levels_after_each_row(name: str) -> None:
    """What inpainting blends in after each evaluation: the levels before the next one, and clean latents at the end."""
    schedule = scheduler_from_config({"skip_prk_steps": True}, name).schedule(8)
    for part in (schedule, schedule[:5]):
        signal, noise = part.after
        assert signal.dtype == noise.dtype == np.float32
        np.testing.assert_array_equal(signal, [*part.signal[1:], 1])
        np.testing.assert_array_equal(noise, [*part.noise_level[1:], 0])


@pytest.mark.parametrize(
    ("name", "options", "arguments", "message"),
    [
        ("pndm", {}, {"num_inference_steps": 3}, "skip_prk_steps to true"),
        ("pndm", {}, {"num_inference_steps": 9, "start": 1}, "skip_prk_steps to true"),
        ("pndm", {"prediction_type": "sample"}, {}, "prediction_type is 'sample'"),
        ("ddpm", {"variance_type": "fixed_large_log"}, {}, "variance_type is 'fixed_large_log'"),
        ("ddpm", {"variance_type": "learned"}, {}, "variance_type is 'learned'"),
        ("ddpm", {"steps_offset": 1}, {"num_inference_steps": 1000}, "timesteps 1..1000 leave"),
        ("dpm2", {"prediction_type": "sample"}, {}, "prediction_type is 'sample'"),
        ("dpm_sde", {"noise_sampler_seed": 3}, {}, "noise_sampler_seed is 3, which is not supported"),
        ("lms", {"beta_schedule": "exp"}, {}, "beta_schedule is 'exp'"),
        ("edm_dpmsolver++", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, {}, "no solver_order 3"),
        ("edm_euler", {"prediction_type": "sample"}, {}, "prediction_type is 'sample'"),
        ("edm_euler", {"sigma_min": None}, {}, "sigma_min is None"),
        ("edm_euler", {}, {"timesteps": [9, 5]}, "custom timesteps"),
    ],
    ids=label,
)
def test_what_is_refused(name: str, options: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DistrijaxError, match=message):
        scheduler_from_config(options, name).schedule(**arguments)

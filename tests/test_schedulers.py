"""Every scheduler against diffusers' own: tables, each step, and whole runs inside a scan."""

import inspect
import itertools
import json
from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch
import torchsde_stub

from distrijax.sampling.noise import TorchGenerator
from distrijax.schedulers import SCHEDULERS, Scheduler, scheduler_from_config

# diffusers hands tensors to NumPy in an old way
pytestmark = [pytest.mark.fast, pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")]

SHAPE = (1, 4, 6, 6)
SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}

# Largest difference of one step relative to the largest value before and after it, float32. One step is a sum of up to
# six products (6e-8 each) with coefficients that diffusers rounds several times on the way; measured 1e-6. Where a step
# of order 3 takes second differences of small numbers, diffusers' own coefficients have few digits: `loose`.
TOLERANCE = 3e-6
LOOSE = 1e-4


def reference(scheduler: Scheduler) -> Any:
    return class_of_theirs(scheduler.class_name).from_config(scheduler.config)


def class_of_theirs(name: str) -> Any:
    return torchsde_stub.scheduler_class() if name == "DPMSolverSDEScheduler" else getattr(diffusers, name)


def prediction(step: int) -> np.ndarray:
    return np.random.default_rng(step).standard_normal(SHAPE).astype(np.float32)


def start(sigma: float) -> np.ndarray:
    return np.random.default_rng(99).standard_normal(SHAPE).astype(np.float32) * np.float32(sigma)


class Pair:
    """A scheduler and diffusers' own, set to the same run, from the same step on."""

    def __init__(
        self, name: str, options: dict[str, Any], steps: int | None, eta: float = 0.0, begin: int = 0, **custom: Any
    ) -> None:
        self.ours = scheduler_from_config({**SDXL, **options}, name)
        self.theirs = reference(self.ours)
        self.schedule = self.ours.schedule(steps, eta=eta, start=begin, **custom)
        self.begin = begin * self.theirs.order  # theirs is an index of evaluations
        self.theirs.set_timesteps(**({} if steps is None else {"num_inference_steps": steps}), **custom)
        if hasattr(self.theirs, "set_begin_index"):
            # without it diffusers looks the first timestep up, and skips a step if two share it
            self.theirs.set_begin_index(self.begin)
        takes = inspect.signature(self.theirs.step).parameters
        self.arguments = {"eta": eta} if "eta" in takes else {}
        self.generator = torchsde_stub.BrownianPath.generator = torch.Generator().manual_seed(11)
        if "generator" in takes:
            self.arguments["generator"] = self.generator

    def first(self) -> np.ndarray:
        """The latents that a run begins with: noise, or a noisy picture."""
        if self.begin == 0:
            return start(self.schedule.init_noise_sigma)
        return np.asarray(self.schedule.add_noise(prediction(1000), prediction(1001)))

    def step_theirs(self, index: int, sample: np.ndarray, output: np.ndarray) -> np.ndarray:
        timestep, latents = self.theirs.timesteps[self.begin + index], torch.from_numpy(np.array(sample))
        self.theirs.scale_model_input(latents, timestep)
        return self.theirs.step(torch.from_numpy(output), timestep, latents, **self.arguments).prev_sample.numpy()

    def check(self, tolerance: float = TOLERANCE) -> None:
        """Step by step, each from the sample that diffusers reached."""
        schedule = self.schedule
        timesteps = self.theirs.timesteps[self.begin :].numpy()
        assert len(schedule) == len(timesteps)
        np.testing.assert_allclose(schedule.timesteps, timesteps, rtol=2e-6, atol=1e-6)
        assert schedule.timesteps.dtype == (np.float32 if timesteps.dtype.kind == "f" else np.int32)
        np.testing.assert_allclose(schedule.init_noise_sigma, float(self.theirs.init_noise_sigma), rtol=3e-7)
        sample = start(schedule.init_noise_sigma)
        state = self.ours.init_state(sample)
        noise = TorchGenerator(11)
        for index in range(len(schedule)):
            coefficients = {name: values[index] for name, values in schedule.coefficients.items()}
            output = prediction(index)
            scaled = self.ours.scale_model_input(coefficients, sample)
            fresh = noise.randn(SHAPE) if schedule.draws[index] else None
            got, state = self.ours.step(coefficients, state, output, sample, fresh)
            expected_input = self.theirs.scale_model_input(
                torch.from_numpy(sample), self.theirs.timesteps[self.begin + index]
            )
            np.testing.assert_allclose(scaled, expected_input.numpy(), rtol=5e-7, atol=0)
            expected = self.step_theirs(index, sample, output)
            assert np.isfinite(expected).all()
            scale = max(1.0, np.abs(sample).max(), np.abs(expected).max())
            assert np.abs(np.asarray(got) - expected).max() < tolerance * scale, f"step {index} of {self.ours}"
            sample = expected
        # both generators are at the same place: as many draws as diffusers made, in the same order
        np.testing.assert_array_equal(noise.randn((3,)), torch.randn(3, generator=self.generator).numpy())


def grid(**options: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def label(value: Any) -> str:
    return json.dumps(value).replace('"', "") if isinstance(value, dict) else str(value)


PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "linspace", "trailing"]
FINALS = ["zero", "sigma_min"]


# ---------------------------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        *grid(beta_schedule=["linear", "scaled_linear", "squaredcos_cap_v2"]),
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 777},
        {"trained_betas": np.linspace(0.001, 0.03, 50).tolist(), "num_train_timesteps": 50},
    ],
    ids=lambda options: label(options)[:60],
)
def test_alphas_are_bit_equal_before_rescaling(options: dict[str, Any], zero_snr: bool) -> None:
    ours = scheduler_from_config({**SDXL, **options, "rescale_betas_zero_snr": zero_snr}, "ddim")
    theirs = reference(ours).alphas_cumprod.numpy()
    # rescaling takes square roots, which torch does not round correctly on every processor, and differences
    np.testing.assert_allclose(ours.alphas_cumprod, theirs, rtol=3e-6 if zero_snr else 0, atol=1e-9 if zero_snr else 0)


def test_training_sigmas() -> None:
    for zero_snr, tolerance in ((False, 3e-7), (True, 3e-5)):  # 1 - alpha has few digits left at the lowest levels
        ours = scheduler_from_config({**SDXL, "rescale_betas_zero_snr": zero_snr}, "euler")
        np.testing.assert_allclose(ours.train_sigmas, reference(ours).sigmas.numpy()[:-1][::-1], rtol=tolerance)


@pytest.mark.parametrize("name", list(SCHEDULERS))
@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_of_every_number_of_steps(name: str, spacing: str) -> None:
    ours = scheduler_from_config({**SDXL, "timestep_spacing": spacing, "skip_prk_steps": True}, name)
    theirs = reference(ours)
    for steps in [1, 2, 3, 4, 5, 7, 8, 10, 13, 20, 25, 30, 33, 40, 47, 50]:
        theirs.set_timesteps(steps)
        computed = SCHEDULERS[name].order == 2 or name.startswith("edm")  # from noise levels
        # ancestral DPM2 has the timestep of a level that diffusers computes with a cancellation
        tolerance = {"rtol": 2e-6 * computed, "atol": 0.02 if name == "dpm2_ancestral" else 1e-6 * computed}
        np.testing.assert_allclose(ours.schedule(steps).timesteps, theirs.timesteps.numpy(), **tolerance)


def test_trailing_makes_as_many_steps_as_asked() -> None:
    """diffusers counts in floats and adds a 62nd timestep, -1."""
    ours = scheduler_from_config({**SDXL, "timestep_spacing": "trailing"}, "euler")
    theirs = reference(ours)
    theirs.set_timesteps(61)
    assert theirs.timesteps.numpy()[-1] == -1
    np.testing.assert_array_equal(ours.schedule(61).timesteps, theirs.timesteps.numpy()[:61])


# ----------------------------------------------------------------------------------------------------------- the steps


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        *grid(prediction_type=PREDICTIONS, clip_sample=[False, True]),
        *grid(timestep_spacing=SPACINGS, set_alpha_to_one=[False, True], clip_sample=[False]),
        {"clip_sample": True, "clip_sample_range": 2.5},
        {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
    ],
    ids=label,
)
def test_ddim(options: dict[str, Any], eta: float) -> None:
    Pair("ddim", options, 7, eta).check()


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_ddim_from_zero_snr(prediction_type: str) -> None:
    for eta in (0.0, 0.5):
        Pair("ddim", {**ZERO_SNR, "prediction_type": prediction_type}, 7, eta).check()
    # at eta 1 the first step's variance is all that is left: diffusers takes the root of its rounding, NaN or not
    coefficients = Pair("ddim", {**ZERO_SNR, "prediction_type": prediction_type}, 7, 1.0).schedule.coefficients
    assert coefficients["next_from_sample"][0] < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        *grid(prediction_type=PREDICTIONS, timestep_spacing=SPACINGS, rescale_betas_zero_snr=[False, True]),
        *grid(interpolation_type=["linear", "log_linear"], final_sigmas_type=FINALS),
        *grid(use_karras_sigmas=[True], prediction_type=PREDICTIONS, final_sigmas_type=FINALS),
        *grid(use_exponential_sigmas=[True], interpolation_type=["linear", "log_linear"]),
        *grid(use_beta_sigmas=[True], timestep_spacing=SPACINGS),
        *grid(timestep_type=["continuous"], prediction_type=PREDICTIONS, use_karras_sigmas=[False, True]),
        {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 80.0},
        {"beta_schedule": "squaredcos_cap_v2"},
    ],
    ids=label,
)
def test_euler(options: dict[str, Any]) -> None:
    Pair("euler", options, 7).check()


@pytest.mark.parametrize(
    "options",
    grid(prediction_type=["epsilon", "v_prediction"], timestep_spacing=SPACINGS, rescale_betas_zero_snr=[False, True]),
    ids=label,
)
def test_euler_ancestral(options: dict[str, Any]) -> None:
    Pair("euler_ancestral", options, 7).check()


DPM_FORMS = {"algorithm_type": ["dpmsolver++", "sde-dpmsolver++"], "solver_order": [1, 2, 3]}


@pytest.mark.parametrize(
    "options",
    [
        *grid(**DPM_FORMS, prediction_type=PREDICTIONS),
        *grid(**DPM_FORMS, timestep_spacing=SPACINGS),
        *grid(**DPM_FORMS, solver_type=["midpoint", "heun"], lower_order_final=[True, False]),
        *grid(**DPM_FORMS, euler_at_final=[True, False], lower_order_final=[False], final_sigmas_type=["sigma_min"]),
        *grid(**DPM_FORMS, use_karras_sigmas=[True]),
        *grid(use_karras_sigmas=[True], solver_order=[1, 2], final_sigmas_type=["sigma_min"]),
        *grid(use_exponential_sigmas=[True], solver_order=[2, 3]),
        *grid(use_beta_sigmas=[True], solver_order=[2]),
        *grid(use_lu_lambdas=[True], solver_order=[2, 3]),
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True, "lambda_min_clipped": -5.1},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"algorithm_type": "deis", "solver_type": "logrho"},
    ],
    ids=label,
)
def test_dpmsolver(options: dict[str, Any]) -> None:
    Pair("dpmsolver++", options, 8).check(LOOSE if options.get("solver_order") == 3 else TOLERANCE)


@pytest.mark.parametrize("options", grid(**DPM_FORMS), ids=label)
def test_dpmsolver_lower_order_at_the_end_ends_at_15_steps(options: dict[str, Any]) -> None:
    for steps in (1, 2, 3, 14, 15):
        Pair("dpmsolver++", options, steps).check(LOOSE)


@pytest.mark.parametrize(
    "options",
    [
        *grid(prediction_type=PREDICTIONS, clip_sample=[False, True]),
        *grid(prediction_type=["v_prediction", "sample"], rescale_betas_zero_snr=[True]),
        {"timestep_scaling": 3.0, "original_inference_steps": 20},
        {"num_train_timesteps": 120},
    ],
    ids=label,
)
def test_lcm(options: dict[str, Any]) -> None:
    for steps in (1, 4, 7):
        Pair("lcm", options, steps).check()


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        *grid(prediction_type=PREDICTIONS),
        *grid(prediction_type=["v_prediction", "sample"], rescale_betas_zero_snr=[True]),
        {"original_inference_steps": 20},
    ],
    ids=label,
)
def test_tcd(options: dict[str, Any], eta: float) -> None:
    for steps in (1, 7):
        Pair("tcd", options, steps, eta).check()


@pytest.mark.parametrize(
    "options",
    [
        *grid(prediction_type=PREDICTIONS, solver_order=[1, 2, 3]),
        *grid(timestep_spacing=SPACINGS, solver_order=[2, 3]),
        *grid(solver_type=["bh1"], solver_order=[1, 2, 3], final_sigmas_type=["sigma_min"]),
        *grid(predict_x0=[False], prediction_type=PREDICTIONS, final_sigmas_type=["sigma_min"]),
        *grid(solver_order=[2, 3], lower_order_final=[False], final_sigmas_type=["sigma_min"]),
        *grid(disable_corrector=[[0], [0, 1, 4]], solver_order=[2, 3, 4]),
        *grid(use_karras_sigmas=[True], solver_order=[2, 3]),
        *grid(use_exponential_sigmas=[True], solver_order=[2]),
        *grid(use_beta_sigmas=[True], solver_order=[2]),
        {"use_karras_sigmas": True, "sigma_min": 0.01, "sigma_max": 20.0},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"solver_type": "heun"},
    ],
    ids=label,
)
def test_unipc(options: dict[str, Any]) -> None:
    steep = options.get("solver_order", 2) > 2 or not options.get("predict_x0", True)
    for steps in (1, 8):
        Pair("unipc", options, steps).check(LOOSE if steep else TOLERANCE)


def test_unipc_bh1_ends_at_zero_where_diffusers_gives_nan() -> None:
    pair = Pair("unipc", {"solver_type": "bh1", "prediction_type": "sample"}, 3)
    sample = start(1.0)
    state = pair.ours.init_state(sample)
    for index in range(3):
        coefficients = {name: values[index] for name, values in pair.schedule.coefficients.items()}
        expected = pair.step_theirs(index, np.asarray(sample), prediction(index))
        sample, state = pair.ours.step(coefficients, state, prediction(index), sample, None)
    assert np.isnan(expected).all()
    np.testing.assert_allclose(sample, prediction(2), atol=1e-6)  # the last clean image predicted


# ------------------------------------------------------------------------------------------ custom timesteps and sigmas

AYS = [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]
AYS_SIGMAS = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0]


@pytest.mark.parametrize("name", ["euler", "dpmsolver++", "lcm", "tcd"])
def test_custom_timesteps(name: str) -> None:
    Pair(name, {}, None, timesteps=AYS).check()
    Pair(name, {"prediction_type": "v_prediction"}, None, timesteps=[999]).check()


@pytest.mark.parametrize(
    "options", [{}, *grid(timestep_type=["continuous"], prediction_type=["v_prediction"])], ids=label
)
def test_custom_sigmas(options: dict[str, Any]) -> None:
    Pair("euler", options, None, sigmas=AYS_SIGMAS).check()
    Pair("euler", options, None, sigmas=[20.0, 1.0, 0.5]).check()


# ------------------------------------------------------------------------------------------------- whole runs in a scan


WHOLE = [
    ("ddim", {"clip_sample": False}, 0.0),
    ("ddim", {"clip_sample": False}, 0.5),
    ("euler", {"timestep_spacing": "leading"}, 0.0),
    ("euler_ancestral", {"timestep_spacing": "trailing"}, 0.0),
    ("dpmsolver++", {"use_karras_sigmas": True}, 0.0),
    ("dpmsolver++", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, 0.0),
    ("lcm", {}, 0.0),
    ("tcd", {}, 0.3),
    ("unipc", {}, 0.0),
    ("heun", {"clip_sample": True}, 0.0),
    ("dpm2_ancestral", {"use_karras_sigmas": True}, 0.0),
    ("dpm_sde", {}, 0.0),
    ("dpmsolver_singlestep", {"solver_order": 3}, 0.0),
    ("lms", {"use_karras_sigmas": True}, 0.0),
    ("pndm", {"skip_prk_steps": True}, 0.0),
    ("pndm", {}, 0.0),
    ("ddpm", {}, 0.0),
    ("edm_dpmsolver++", {}, 0.0),
]


@pytest.mark.parametrize(("name", "options", "eta"), WHOLE, ids=label)
def test_a_run_inside_scan(name: str, options: dict[str, Any], eta: float) -> None:
    """Compiled, errors adding up, noise drawn ahead; the state keeps its shapes and dtypes."""
    pair = Pair(name, options, 6, eta)
    schedule, ours = pair.schedule, pair.ours
    sample = start(schedule.init_noise_sigma)
    generator = TorchGenerator(11)
    draws = [generator.randn(SHAPE) if drawn else np.zeros(SHAPE, np.float32) for drawn in schedule.draws]
    noise = np.stack(draws) if schedule.draws.any() else None
    outputs = np.stack([prediction(index) for index in range(len(schedule))])

    def body(carry: tuple[Any, Any], step: Any) -> tuple[tuple[Any, Any], Any]:
        coefficients, output, fresh = step
        latents, state = carry
        return ours.step(coefficients, state, output, latents, fresh), ours.scale_model_input(coefficients, latents)

    run = jax.jit(lambda first, steps: jax.lax.scan(body, (first, ours.init_state(first)), steps)[0][0])
    got = run(sample, (schedule.coefficients, outputs, noise))
    for index in range(len(schedule)):
        sample = pair.step_theirs(index, sample, prediction(index))
    assert got.dtype == np.float32
    scale = max(schedule.init_noise_sigma, np.abs(sample).max())
    np.testing.assert_allclose(got, sample, rtol=0, atol=2e-6 * len(schedule) * scale)


def test_half_precision_predictions_keep_the_latents_in_float32() -> None:
    for name in SCHEDULERS:
        ours = scheduler_from_config(SDXL, name)
        schedule = ours.schedule(5)
        coefficients = {key: values[1] for key, values in schedule.coefficients.items()}
        sample = start(1.0)
        half = prediction(0).astype(jax.numpy.bfloat16)
        got, _ = ours.step(coefficients, ours.init_state(sample), half, sample, start(1.0))
        expected, _ = ours.step(coefficients, ours.init_state(sample), half.astype(np.float32), sample, start(1.0))
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)


def test_one_program_for_every_number_of_steps_and_eta() -> None:
    ours = scheduler_from_config(SDXL, "ddim")
    traces = []

    @jax.jit
    def one(coefficients: dict[str, Any], sample: Any, output: Any, noise: Any) -> Any:
        traces.append(1)
        return ours.step(coefficients, ours.init_state(sample), output, sample, noise)[0]

    for steps, eta in [(5, 0.0), (9, 0.4), (20, 1.0)]:
        schedule = ours.schedule(steps, eta=eta)
        one(
            {name: values[0] for name, values in schedule.coefficients.items()},
            start(1.0),
            prediction(0),
            prediction(1),
        )
    assert len(traces) == 1


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_a_scheduler_is_a_static_argument_and_a_schedule_can_be_cut(name: str) -> None:
    ours = scheduler_from_config({**SDXL, "trained_betas": None}, name)
    assert hash(ours) == hash(scheduler_from_config(SDXL, name))
    assert ours == scheduler_from_config(SDXL, name)
    schedule = ours.schedule(8)
    part = schedule[:5]
    assert len(part) == 5
    assert part.init_noise_sigma == schedule.init_noise_sigma
    for values in (part.timesteps, part.draws, part.step_of, *part.coefficients.values()):
        assert len(values) == 5
    for key, values in schedule.coefficients.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(part.coefficients[key], values[:5])

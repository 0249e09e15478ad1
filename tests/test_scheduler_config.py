"""Schedulers from and to `scheduler_config.json`, as diffusers has it; configs and runs that are refused."""

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
from test_schedulers import SDXL, class_of_theirs

from distrijax.errors import DistrijaxError
from distrijax.schedulers import SCHEDULERS, Scheduler, scheduler_from_config

pytestmark = [pytest.mark.fast, pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")]

BETWEEN = ["euler", "ddim", "dpmsolver++", "unipc", "lcm", "dpmsolver_singlestep", "pndm", "edm_euler"]
"""Schedulers of which others are made: every set of options that differs much."""

SDXL_BASE = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_swapping_the_class_keeps_what_diffusers_keeps(name: str) -> None:
    ours = scheduler_from_config(SDXL_BASE, name)
    assert ours == scheduler_from_config(SDXL_BASE, ours.class_name)
    theirs = class_of_theirs(ours.class_name).from_config(SDXL_BASE)
    for option, value in ours.config.items():
        if not option.startswith("_"):
            assert theirs.config[option] == value, option


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("missing", ["nothing", "timestep_spacing", "steps_offset"])
def test_a_scheduler_made_from_another_has_what_was_meant_for_it(between: str, missing: str) -> None:
    """SDXL's own config is one of Euler that says `clip_sample` false for DDIM, whose default is to clip."""
    config = {key: value for key, value in SDXL_BASE.items() if key != missing}
    first = scheduler_from_config(config, between)
    theirs = class_of_theirs(first.class_name).from_config(config)
    for name in SCHEDULERS:
        ours = scheduler_from_config(first.config, name)
        config_of_theirs = class_of_theirs(ours.class_name).from_config(theirs.config).config
        for option, value in ours.config.items():
            assert option.startswith("_") or config_of_theirs[option] == value, (name, option)
    assert scheduler_from_config(first.config, "ddim").clip_sample is False
    if hasattr(first, "timestep_spacing"):
        changed = dataclasses.replace(first, timestep_spacing="trailing").config
        assert scheduler_from_config(changed, "unipc").timestep_spacing == "trailing"


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_defaults_and_configs_of_diffusers_round_trip(name: str, tmp_path: Any) -> None:
    theirs = class_of_theirs(SCHEDULERS[name].class_name)()
    theirs.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    ours = scheduler_from_config(saved)
    assert ours == SCHEDULERS[name]()
    again = json.loads(json.dumps(ours.config))
    assert scheduler_from_config(again) == ours
    assert {key: again[key] for key in again if key in saved} == {key: saved[key] for key in again if key in saved}


def test_defaults_that_diffusers_marks_are_not_carried_over() -> None:
    config = {**SDXL_BASE, "timestep_spacing": "linspace", "_use_default_values": ["timestep_spacing"]}
    assert scheduler_from_config(config, "ddim").timestep_spacing == "leading"


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("options", [{}, {"timestep_spacing": "linspace"}, {"timestep_spacing": "leading"}], ids=str)
def test_options_that_a_constructor_was_not_given_are_defaults(between: str, options: dict[str, Any]) -> None:
    """diffusers marks an option by whether it was passed, also if the value is the default."""
    fields = SCHEDULERS[between].__dataclass_fields__
    options = {name: value for name, value in ({"beta_end": 0.012} | options).items() if name in fields}
    first = SCHEDULERS[between](**options)
    theirs = class_of_theirs(first.class_name)(**options)
    marked = first.config["_use_default_values"]
    assert set(marked) == set(theirs.config["_use_default_values"]) & first.config.keys()
    for cls in SCHEDULERS.values():
        expected = class_of_theirs(cls.class_name).from_config(theirs.config).config
        ours = cls.from_config(first.config)
        assert {name: expected[name] for name in ours.config if name in cls.__dataclass_fields__} == {
            name: value for name, value in ours.config.items() if name in cls.__dataclass_fields__
        }
        assert copy.copy(ours).config == pickle.loads(pickle.dumps(ours)).config == ours.config


@pytest.mark.parametrize("cls", SCHEDULERS.values(), ids=list(SCHEDULERS))
def test_overrides_of_from_config(cls: type[Scheduler]) -> None:
    changes = {"timestep_spacing": "trailing", "steps_offset": 0, "prediction_type": "v_prediction"}
    changes = {name: value for name, value in changes.items() if name in cls.__dataclass_fields__}
    ours = cls.from_config(SDXL_BASE, **changes)
    theirs = class_of_theirs(cls.class_name).from_config(SDXL_BASE, **changes)
    assert ours == cls.from_config({**SDXL_BASE, **changes}) == cls.from_config(theirs.config)
    for option, value in changes.items():
        assert ours.config[option] == theirs.config[option] == value
        assert option not in ours.config["_use_default_values"]
    with pytest.raises(DistrijaxError, match="unknown option wobble"):
        cls.from_config(SDXL_BASE, wobble=1)
    with pytest.raises(DistrijaxError, match=f"{cls.class_name}: from_config takes a mapping"):
        cls.from_config(ours)


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        ({"_class_name": "VQDiffusionScheduler"}, None, "'VQDiffusionScheduler' is not supported.*euler.*unipc"),
        ({}, None, "names no class"),
        (SDXL_BASE, "plmsd", "scheduler name 'plmsd' is not supported; near: .*PLMS"),
        ({**SDXL_BASE, "prediction_type": "flow_prediction"}, None, "prediction_type is 'flow_prediction'.*epsilon"),
        ({**SDXL_BASE, "timestep_spacing": "log"}, None, "timestep_spacing is 'log'.*leading"),
        ({**SDXL_BASE, "beta_schedule": "sigmoid"}, None, "beta_schedule is 'sigmoid'.*scaled_linear"),
        ({**SDXL_BASE, "final_sigmas_type": "one"}, None, "final_sigmas_type is 'one'.*zero"),
        ({**SDXL_BASE, "use_karras_sigmas": True, "use_beta_sigmas": True}, None, "exclude each other"),
        ({**SDXL_BASE, "use_karras_sigmas": "yes"}, None, "use_karras_sigmas is 'yes'.*True or False"),
        ({**SDXL_BASE, "beta_end": "big"}, None, "beta_end is 'big'.*finite number"),
        ({**SDXL_BASE, "num_train_timesteps": 10.5}, None, r"num_train_timesteps is 10\.5.*whole number"),
        ({**SDXL_BASE, "num_train_timesteps": 1}, None, "num_train_timesteps is 1; .* from 2 to"),
        ({**SDXL_BASE, "trained_betas": [0.1, 0.2]}, None, "trained_betas has 2 values"),
        ({**SDXL_BASE, "thresholding": True}, "ddim", "thresholding is True, which is not supported"),
        ({**SDXL_BASE, "thresholding": True}, "lcm", "thresholding is True, which is not supported"),
        (
            {**SDXL_BASE, "prediction_type": "sample"},
            "euler_ancestral",
            "prediction_type is 'sample'.*epsilon",
        ),
        ({**SDXL_BASE, "algorithm_type": "dpmsolver"}, "dpmsolver++", "algorithm_type is 'dpmsolver'.*sde-dpmsolver"),
        ({**SDXL_BASE, "use_flow_sigmas": True}, "unipc", "use_flow_sigmas is True, which is not supported"),
        (
            {**SDXL_BASE, "variance_type": "learned"},
            "dpmsolver++",
            "variance_type is 'learned', which is not supported",
        ),
        ({**SDXL_BASE, "solver_order": 4}, "dpmsolver++", "solver_order is 4; .*from 1 to 3"),
        ({**SDXL_BASE, "solver_order": 0}, "unipc", "solver_order is 0; .*from 1 to"),
        ({**SDXL_BASE, "disable_corrector": ["a"]}, "unipc", r"disable_corrector\[0\] is 'a'; .*whole number"),
    ],
    ids=lambda value: str(value)[-60:] if isinstance(value, str) else None,
)
def test_configs_that_are_refused(config: dict[str, Any], name: str | None, message: str) -> None:
    with pytest.raises(DistrijaxError, match=message):
        scheduler_from_config(config, name)


@pytest.mark.parametrize(
    ("name", "options", "arguments", "message"),
    [
        *[(name, {}, {"num_inference_steps": 0}, "steps is 0; .*from 1 to 1000") for name in SCHEDULERS],
        *[(name, {}, {"num_inference_steps": 1001}, "steps is 1001; .*from 1 to 1000") for name in SCHEDULERS],
        ("euler", {}, {"num_inference_steps": 2.5}, "whole number"),
        ("euler", {}, {}, "exactly one"),
        ("euler", {}, {"num_inference_steps": 3, "timesteps": [9, 5, 1]}, "exactly one"),
        ("euler", {}, {"timesteps": [9, 5], "sigmas": [3.0, 1.0]}, "exactly one"),
        *[
            (name, {}, {"timesteps": [9, 5]}, "custom timesteps")
            for name, kind in SCHEDULERS.items()
            if "timesteps" not in kind.custom
        ],
        *[(name, {}, {"sigmas": [9, 5]}, "custom sigmas") for name in SCHEDULERS if name != "euler"],
        ("euler", {}, {"timesteps": "ays"}, "num_inference_steps is None; .*whole number"),
        ("euler", {}, {"timesteps": "best", "num_inference_steps": 9}, "timesteps, .* is 'best'; .* ays"),
        ("euler", {}, {"timesteps": "ays", "num_inference_steps": 9, "sigmas": [9, 5]}, "exactly one"),
        ("euler", {}, {"timesteps": "ays", "num_inference_steps": 300}, "300 of them would share timesteps"),
        ("ddim", {}, {"timesteps": "ays", "num_inference_steps": 9}, "custom timesteps"),
        ("euler", {}, {"timesteps": [5, 9]}, "fall"),
        ("lcm", {}, {"timesteps": [9, 9]}, "fall"),
        ("euler", {}, {"timesteps": []}, "at least 1"),
        ("euler", {}, {"timesteps": ["a"]}, "at least 1"),
        ("euler", {}, {"timesteps": [1000, 5]}, r"0\.\.999"),
        ("dpmsolver++", {}, {"timesteps": [5, -1]}, r"0\.\.999"),
        ("tcd", {}, {"timesteps": [5.5, 1]}, "whole numbers"),
        ("euler", {}, {"sigmas": [1.0]}, "at least 2"),
        ("euler", {}, {"sigmas": [1.0, 2.0, 0.0]}, "fall"),
        ("euler", {}, {"sigmas": [1.0, float("nan"), 0.0]}, "finite"),
        ("euler", {}, {"sigmas": [1.0, -1.0]}, "negative"),
        ("euler", {"use_karras_sigmas": True}, {"timesteps": [9, 5]}, "use_karras_sigmas"),
        ("dpmsolver++", {"use_lu_lambdas": True}, {"timesteps": [9, 5]}, "use_lu_lambdas"),
        ("ddim", {}, {"num_inference_steps": 5, "eta": -0.1}, "eta"),
        ("tcd", {}, {"num_inference_steps": 5, "eta": 1.5}, r"eta is 1\.5; .*from 0 to 1"),
        *[
            (name, {}, {"num_inference_steps": 5, "start": 5}, "start is 5; .*from 0 to 4")
            for name in SCHEDULERS
            if name != "pndm"
        ],
        ("pndm", {}, {"num_inference_steps": 5, "start": 6}, "start is 6; .*from 0 to 5"),
        ("ddim", {}, {"num_inference_steps": 5, "start": -1}, "start is -1; .*whole number"),
        ("euler", {}, {"sigmas": [9.0, 2.0, 0.0], "start": 1.0}, r"start is 1\.0; .*whole number"),
        (  # one of its 50 timesteps has less signal than asked, and is left out
            "dpmsolver++",
            {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -3.0, "timestep_spacing": "trailing"},
            {"num_inference_steps": 50, "start": 49},
            "start is 49; .*from 0 to 48",
        ),
        ("ddim", {}, {"num_inference_steps": 1000}, "steps_offset 1"),
        ("lcm", {}, {"num_inference_steps": 51}, "original_inference_steps 50"),
        (
            "lcm",
            {"original_inference_steps": 2000},
            {"num_inference_steps": 4},
            "original_inference_steps is 2000; .* to 1000",
        ),
        (
            "ddim",
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            {"num_inference_steps": 5},
            "no finite coefficients.*prediction_type 'epsilon'",
        ),
        (
            "unipc",
            {"lower_order_final": False},
            {"num_inference_steps": 5},
            "step 4 .* no finite coefficients",
        ),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str) else None,
)
def test_runs_that_are_refused(name: str, options: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    ours = scheduler_from_config({**SDXL, "skip_prk_steps": True, **options}, name)
    with pytest.raises(DistrijaxError, match=message):
        ours.schedule(**arguments)

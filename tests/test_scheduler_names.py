"""The names that other programs have for schedulers; run as a script, this writes the tables of the page."""

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torchsde_stub

from distrijax.errors import DistrijaxError
from distrijax.schedulers import NOISE_SCHEDULES, RECIPES, SAMPLERS, SCHEDULERS, named, scheduler_from_config
from distrijax.schedulers.names import fits

pytestmark = [pytest.mark.fast, pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")]

PAGE = Path(__file__).parents[1] / "docs" / "schedulers.md"
SDXL = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False}


def names() -> str:
    """The table of names."""
    rows = ["| A1111 | ComfyUI | diffusers | followed by |", "|---|---|---|---|"]
    for sampler in SAMPLERS:
        suffixes = ", ".join(name for name in NOISE_SCHEDULES if fits(sampler, name))
        made = ", ".join([sampler.scheduler.class_name, *(f"{k}={v!r}" for k, v in sampler.options.items())])
        rows.append(f"| {sampler.name} | `{sampler.comfy}` | `{made}` | {suffixes} |")
    return "\n".join(rows)


def recipes() -> str:
    """The table of recipes."""
    rows = ["| recipe | weights | scheduler | steps | guidance | warm-up |", "|---|---|---|---|---|---|"]
    for name, recipe in RECIPES.items():
        options = {**recipe.options, **({"eta": recipe.eta} if recipe.eta else {})}
        made = ", ".join([recipe.kind.class_name, *(f"{k}={v!r}" for k, v in options.items())])
        steps = f"timesteps {', '.join(map(str, recipe.timesteps))}" if recipe.timesteps else str(recipe.steps)
        weights, guidance = recipe.weights, f"{recipe.guidance_scale:g}"
        rows.append(f"| `{name}` | {weights} | `{made}` | {steps} | {guidance} | {recipe.warmup_steps} |")
    return "\n".join(rows)


def test_the_page_has_the_tables() -> None:
    assert names() in PAGE.read_text()
    assert recipes() in PAGE.read_text()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_every_name_builds_what_diffusers_builds(sampler: Any) -> None:
    stub = sampler.scheduler.class_name == "DPMSolverSDEScheduler"
    theirs = torchsde_stub.scheduler_class() if stub else getattr(diffusers, sampler.scheduler.class_name)
    for suffix in ("", *(name for name in NOISE_SCHEDULES if fits(sampler, name))):
        options = {**sampler.options, **NOISE_SCHEDULES.get(suffix, {})}
        ours = scheduler_from_config(SDXL, f"{sampler.name} {suffix}".strip())
        assert type(ours) is sampler.scheduler
        assert ours == scheduler_from_config(SDXL, f"{sampler.comfy}_{suffix.lower().replace(' ', '_')}".strip("_"))
        config = theirs.from_config(SDXL, **options).config
        assert {name: config[name] for name in options} == options
        for name, value in ours.config.items():
            assert name.startswith("_") or config[name] == value, name
        assert ours.schedule(8).steps == 8


@pytest.mark.parametrize(
    ("name", "class_name", "options"),
    [
        ("DPM++ 2M SDE Karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "solver_order": 2}),
        ("dpmpp_2m_karras", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        ("dpm++ 3m sde exponential", "DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("Euler a", "EulerAncestralDiscreteScheduler", {}),
        ("euler_ancestral_sgm_uniform", "EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("DPM2 a Karras", "KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}),
        ("DPM++ SDE Karras", "DPMSolverSDEScheduler", {"use_karras_sigmas": True}),
        ("PLMS", "PNDMScheduler", {"skip_prk_steps": True}),
        ("dpmsolver++", "DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
        ("HeunDiscreteScheduler", "HeunDiscreteScheduler", {}),
    ],
)
def test_some_names(name: str, class_name: str, options: dict[str, Any]) -> None:
    ours = scheduler_from_config(SDXL, name)
    assert ours.class_name == class_name
    assert options.items() <= ours.config.items()


def test_a_noise_schedule_replaces_that_of_the_config() -> None:
    config = {**SDXL, "use_exponential_sigmas": True}
    assert scheduler_from_config(config, "DPM++ 2M Karras").use_exponential_sigmas is False
    assert scheduler_from_config(config, "DPM++ 2M").use_exponential_sigmas is True
    stochastic = {**SDXL, "algorithm_type": "sde-dpmsolver++"}
    assert scheduler_from_config(stochastic, "DPM++ 2M").algorithm_type == "dpmsolver++"


def test_no_two_names_have_the_same_letters() -> None:
    """One name may have several meanings only if they are the same class, without options from the config alone."""
    for short, scheduler in SCHEDULERS.items():
        assert named(short) == named(scheduler.class_name) == (scheduler, {})
    letters = [re.sub("[^a-z0-9]", "", s.name.lower().replace("+", "p")) for s in SAMPLERS]
    assert len(set(letters)) == len(letters)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("DPM++ 2M Karas", r"near: .*DPM\+\+ 2M Karras"),
        ("DPM++ 2S a", r"near: .*DPM\+\+ 2M"),
        ("Euler a Karras", "near: .*Euler Karras"),
        ("EulerDiscreteSheduler", "near: EulerDiscreteScheduler"),
        ("zzz", r"there are Euler, Euler a, .*TCD"),
        ("", "there are Euler"),
        (7, "scheduler name 7 is not supported"),
        (["euler"], "not supported"),
    ],
)
def test_names_that_are_unknown(name: Any, near: str) -> None:
    with pytest.raises(DistrijaxError, match=near):
        scheduler_from_config(SDXL, name)


if __name__ == "__main__":
    text = PAGE.read_text()
    for table in (names(), recipes()):
        head = re.escape(table[: table.index("|", 1) + 1])
        text = re.sub(head + r".*?(?=\n\n)", lambda _, table=table: table, text, flags=re.DOTALL)
    PAGE.write_text(text)

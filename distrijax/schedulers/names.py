"""What other programs call the schedulers: "DPM++ 2M Karras" and `dpmpp_2m_karras` are a class and its options."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from distrijax.errors import DistrijaxError
from distrijax.schedulers.base import Scheduler
from distrijax.schedulers.ddim import DDIMScheduler
from distrijax.schedulers.ddpm import DDPMScheduler
from distrijax.schedulers.dpm2 import KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler
from distrijax.schedulers.dpm_sde import DPMSolverSDEScheduler
from distrijax.schedulers.dpmsolver import DPMSolverMultistepScheduler
from distrijax.schedulers.dpmsolver_singlestep import DPMSolverSinglestepScheduler
from distrijax.schedulers.edm import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from distrijax.schedulers.euler import EulerDiscreteScheduler
from distrijax.schedulers.euler_ancestral import EulerAncestralDiscreteScheduler
from distrijax.schedulers.heun import HeunDiscreteScheduler
from distrijax.schedulers.lcm import LCMScheduler
from distrijax.schedulers.lms import LMSDiscreteScheduler
from distrijax.schedulers.options import SIGMA_OPTIONS
from distrijax.schedulers.pndm import PNDMScheduler
from distrijax.schedulers.tcd import TCDScheduler
from distrijax.schedulers.unipc import UniPCMultistepScheduler

SCHEDULERS: dict[str, type[Scheduler]] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
    "unipc": UniPCMultistepScheduler,
    "heun": HeunDiscreteScheduler,
    "dpm2": KDPM2DiscreteScheduler,
    "dpm2_ancestral": KDPM2AncestralDiscreteScheduler,
    "dpm_sde": DPMSolverSDEScheduler,
    "dpmsolver_singlestep": DPMSolverSinglestepScheduler,
    "lms": LMSDiscreteScheduler,
    "pndm": PNDMScheduler,
    "ddpm": DDPMScheduler,
    "edm_euler": EDMEulerScheduler,
    "edm_dpmsolver++": EDMDPMSolverMultistepScheduler,
}
"""Short name -> class, which takes its options from the config alone."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A row of the table of names.

    Attributes:
        name: what A1111 calls it.
        comfy: what ComfyUI calls it.
        options: those that make the class this sampler.
    """

    name: str
    comfy: str
    scheduler: type[Scheduler]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_ODE, _SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
SAMPLERS = (
    Sampler("Euler", "euler", EulerDiscreteScheduler),
    Sampler("Euler a", "euler_ancestral", EulerAncestralDiscreteScheduler),
    Sampler("Heun", "heun", HeunDiscreteScheduler),
    Sampler("LMS", "lms", LMSDiscreteScheduler),
    Sampler("DPM2", "dpm_2", KDPM2DiscreteScheduler),
    Sampler("DPM2 a", "dpm_2_ancestral", KDPM2AncestralDiscreteScheduler),
    Sampler("DPM++ 2M", "dpmpp_2m", DPMSolverMultistepScheduler, {**_ODE, "solver_order": 2}),
    Sampler("DPM++ SDE", "dpmpp_sde", DPMSolverSDEScheduler),
    Sampler("DPM++ 2M SDE", "dpmpp_2m_sde", DPMSolverMultistepScheduler, {**_SDE, "solver_order": 2}),
    Sampler(
        "DPM++ 2M SDE Heun",
        "dpmpp_2m_sde_heun",
        DPMSolverMultistepScheduler,
        {**_SDE, "solver_order": 2, "solver_type": "heun"},
    ),
    Sampler("DPM++ 3M SDE", "dpmpp_3m_sde", DPMSolverMultistepScheduler, {**_SDE, "solver_order": 3}),
    Sampler("UniPC", "uni_pc_bh2", UniPCMultistepScheduler, {"solver_type": "bh2"}),
    Sampler("DDIM", "ddim", DDIMScheduler),
    Sampler("PLMS", "plms", PNDMScheduler, {"skip_prk_steps": True}),
    Sampler("DDPM", "ddpm", DDPMScheduler),
    Sampler("LCM", "lcm", LCMScheduler),
    Sampler("TCD", "tcd", TCDScheduler),
)

_TRAILING = {"timestep_spacing": "trailing"}
NOISE_SCHEDULES: dict[str, dict[str, Any]] = {
    "Karras": {"use_karras_sigmas": True},
    "Exponential": {"use_exponential_sigmas": True},
    "Beta": {"use_beta_sigmas": True},
    "Lu": {"use_lu_lambdas": True},
    "Normal": {"timestep_spacing": "linspace"},
    "SGM Uniform": _TRAILING,
    "Simple": _TRAILING,
    "DDIM Uniform": {"timestep_spacing": "leading", "steps_offset": 1},
}
"""What follows a sampler's name, as A1111 spells it (ComfyUI: `karras`, `sgm_uniform`, ...) -> options of the class."""


def fits(sampler: Sampler, noise_schedule: str) -> bool:
    """Return whether the sampler's class has the options of a noise schedule."""
    fields = {field.name for field in dataclasses.fields(sampler.scheduler)}
    distilled = sampler.scheduler in (LCMScheduler, TCDScheduler)  # their timesteps are those of the distillation
    return NOISE_SCHEDULES[noise_schedule].keys() <= fields and not distilled


@cache
def _spellings() -> dict[str, tuple[type[Scheduler], dict[str, Any]]]:
    """Return what every name stands for, by its letters and digits."""
    found: dict[str, tuple[type[Scheduler], dict[str, Any]]] = {}
    for sampler in SAMPLERS:
        has = {field.name for field in dataclasses.fields(sampler.scheduler)}
        # a noise schedule replaces that of the config, of which two formulas would exclude each other
        off: dict[str, Any] = {option: False for option in SIGMA_OPTIONS if option in has}
        suffixes: dict[str, dict[str, Any]] = {"": {}} | {
            f" {name}": off | NOISE_SCHEDULES[name] for name in NOISE_SCHEDULES if fits(sampler, name)
        }
        for suffix, options in suffixes.items():
            for name in (sampler.name, sampler.comfy):
                found[_letters(name + suffix)] = sampler.scheduler, {**sampler.options, **options}
    for short, scheduler in SCHEDULERS.items():
        found |= dict.fromkeys((_letters(short), _letters(scheduler.class_name)), (scheduler, {}))
    return found


def _letters(name: str) -> str:
    """Return the letters and digits of a name: "DPM++ 2M SDE" and `dpmpp_2m_sde` have the same, dpmpp2msde."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("+", "p"))


def is_name(name: str) -> bool:
    """Return whether `named` knows this name."""
    return _letters(name) in _spellings()


def named(name: object) -> tuple[type[Scheduler], dict[str, Any]]:
    """Return the class and the options that a name stands for.

    Args:
        name: of A1111 or ComfyUI, with a noise schedule or without, a class of diffusers, or a key of `SCHEDULERS`.

    Raises:
        DistrijaxError: there is no such name; the message has those that are near.
    """
    known = _spellings()
    letters = _letters(name) if isinstance(name, str) else ""
    if letters in known:
        return known[letters]
    displayed = [*SCHEDULERS, *(scheduler.class_name for scheduler in SCHEDULERS.values())]
    displayed += [
        s.name + suffix for s in SAMPLERS for suffix in ("", *(f" {n}" for n in NOISE_SCHEDULES if fits(s, n)))
    ]
    by_letters = {_letters(shown): shown for shown in displayed}
    near = [by_letters[close] for close in difflib.get_close_matches(letters, by_letters, n=5, cutoff=0.5)]
    what = f"near: {', '.join(near)}" if near else f"there are {', '.join(sampler.name for sampler in SAMPLERS)}"
    raise DistrijaxError(f"scheduler name {name!r} is not supported; {what}")

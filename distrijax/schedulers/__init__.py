"""Schedulers, one file each: tables computed on the host, and steps of elementwise arithmetic.

    scheduler = scheduler_from_config(json.load(open("scheduler_config.json")))
    schedule = scheduler.schedule(30)
    state = scheduler.init_state(latents)
    for i in range(len(schedule)):  # or jax.lax.scan over schedule.coefficients
        coefficients = {name: values[i] for name, values in schedule.coefficients.items()}
        prediction = unet(scheduler.scale_model_input(coefficients, latents), schedule.timesteps[i], ...)
        latents, state = scheduler.step(coefficients, state, prediction, latents, noise)

To start from a picture, with the last 12 of the 30 steps:

    schedule = scheduler.schedule(30, start=18)
    latents = schedule.add_noise(encoded_picture, noise)
"""

from collections.abc import Mapping

from distrijax.checks import instance_of
from distrijax.errors import DistrijaxError
from distrijax.schedulers.base import Config, Scheduler
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
from distrijax.schedulers.names import NOISE_SCHEDULES, SAMPLERS, SCHEDULERS, is_name, named
from distrijax.schedulers.pndm import PNDMScheduler
from distrijax.schedulers.recipes import RECIPES, Recipe, find_recipe
from distrijax.schedulers.schedule import Array, Coefficients, Schedule, State
from distrijax.schedulers.tcd import TCDScheduler
from distrijax.schedulers.unipc import UniPCMultistepScheduler


def scheduler_from_config(config: Config, name: str | None = None) -> Scheduler:
    """Build a scheduler from the contents of a `scheduler_config.json`.

    Args:
        config: the options, with diffusers' names.
        name: what A1111, ComfyUI or diffusers call a scheduler, such as "DPM++ 2M Karras", `dpmpp_2m_karras` or
            "DPMSolverMultistepScheduler", to build that one instead of the config's own `_class_name`; see
            `Scheduler.from_config`. The options that belong to the name replace the config's.

    Raises:
        DistrijaxError: the class or an option is unknown, or an option's value is not supported.
    """
    instance_of("config", config, Mapping, "a mapping like scheduler.config")
    if name is not None:
        scheduler, options = named(name)
        return scheduler.from_config(config, **options)
    kind = config.get("_class_name")
    for short, scheduler in SCHEDULERS.items():
        if isinstance(kind, str) and kind in (short, scheduler.class_name):
            return scheduler.from_config(config)
    what = "the scheduler config names no class" if kind is None else f"the scheduler {kind!r} is not supported"
    supported = ", ".join(f"{short} ({scheduler.class_name})" for short, scheduler in SCHEDULERS.items())
    raise DistrijaxError(f"{what}; ask for another one, with scheduler= or --scheduler; supported: {supported}")


__all__ = [
    "NOISE_SCHEDULES",
    "RECIPES",
    "SAMPLERS",
    "SCHEDULERS",
    "Array",
    "Coefficients",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "Recipe",
    "Schedule",
    "Scheduler",
    "State",
    "TCDScheduler",
    "UniPCMultistepScheduler",
    "find_recipe",
    "is_name",
    "named",
    "scheduler_from_config",
]

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
from distrijax.schedulers.dpmsolver import DPMSolverMultistepScheduler
from distrijax.schedulers.euler import EulerDiscreteScheduler
from distrijax.schedulers.euler_ancestral import EulerAncestralDiscreteScheduler
from distrijax.schedulers.lcm import LCMScheduler
from distrijax.schedulers.schedule import Array, Coefficients, Schedule, State
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
}
"""Short name -> class. `scheduler_from_config` also takes the class names that diffusers uses."""


def scheduler_from_config(config: Config, name: str | None = None) -> Scheduler:
    """Build a scheduler from the contents of a `scheduler_config.json`.

    Args:
        config: the options, with diffusers' names.
        name: a key of `SCHEDULERS` or a class name of diffusers, to build that class instead of the config's own
            `_class_name`; see `Scheduler.from_config`.

    Raises:
        DistrijaxError: the class or an option is unknown, or an option's value is not supported.
    """
    instance_of("config", config, Mapping, "a mapping like scheduler.config")
    kind = config.get("_class_name") if name is None else name
    for short, scheduler in SCHEDULERS.items():
        if isinstance(kind, str) and kind in (short, scheduler.class_name):
            return scheduler.from_config(config)
    what = f"the scheduler {kind!r} is not supported" if name is None else f"scheduler name {kind!r} is not supported"
    what = "the scheduler config names no class" if kind is None else what
    supported = ", ".join(f"{short} ({scheduler.class_name})" for short, scheduler in SCHEDULERS.items())
    cure = "; ask for another one, with scheduler= or --scheduler" if name is None else ""
    raise DistrijaxError(f"{what}{cure}; supported: {supported}")


__all__ = [
    "SCHEDULERS",
    "Array",
    "Coefficients",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "Schedule",
    "Scheduler",
    "State",
    "TCDScheduler",
    "UniPCMultistepScheduler",
    "scheduler_from_config",
]

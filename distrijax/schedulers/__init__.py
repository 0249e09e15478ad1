"""Schedulers: pure functions on arrays, tables computed on the host. One file each.

In use:

    scheduler = scheduler_from_config(json.load(open("scheduler_config.json")))
    schedule = scheduler.schedule(30)
    state = scheduler.init_state(latents)
    for i in range(len(schedule)):  # or jax.lax.scan over schedule.rows
        row = {name: values[i] for name, values in schedule.rows.items()}
        prediction = unet(scheduler.scale_model_input(row, latents), schedule.timesteps[i], ...)
        latents, state = scheduler.step(row, state, prediction, latents, noise)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distrijax.errors import DistrijaxError
from distrijax.schedulers.common import Schedule, Scheduler
from distrijax.schedulers.ddim import DDIMScheduler
from distrijax.schedulers.dpmsolver import DPMSolverMultistepScheduler
from distrijax.schedulers.euler import EulerDiscreteScheduler
from distrijax.schedulers.euler_ancestral import EulerAncestralDiscreteScheduler
from distrijax.schedulers.lcm import LCMScheduler
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

_CLASSES = {cls.class_name: cls for cls in SCHEDULERS.values()}

_DIFFUSERS_OPTIONS = """
    clip_sample clip_sample_range set_alpha_to_one thresholding dynamic_thresholding_ratio sample_max_value
    original_inference_steps timestep_scaling interpolation_type use_karras_sigmas use_exponential_sigmas
    use_beta_sigmas use_lu_lambdas use_flow_sigmas flow_shift use_dynamic_shifting time_shift_type shift_terminal
    sigma_min sigma_max sigma_data sigma_schedule rho noise_sampler_seed timestep_type final_sigmas_type solver_order
    algorithm_type solver_type solver_p lower_order_final euler_at_final predict_x0 disable_corrector
    lambda_min_clipped variance_type skip_prk_steps
"""
_IGNORED = frozenset(_DIFFUSERS_OPTIONS.split())
"""Options of diffusers' other schedulers: a config made for one class is read by another, which ignores them."""


def _class_named(name: str) -> type[Scheduler]:
    cls = SCHEDULERS.get(name) or _CLASSES.get(name)
    if cls is None:
        supported = ", ".join(f"{short} ({cls.class_name})" for short, cls in SCHEDULERS.items())
        raise DistrijaxError(f"scheduler {name!r} is not supported; supported: {supported}")
    return cls


def scheduler_from_config(config: Mapping[str, Any], class_name: str | None = None) -> Scheduler:
    """A scheduler from the content of a `scheduler_config.json`.

    Args:
        config: the options, with diffusers' names.
        class_name: build this class instead of the config's own, like `X.from_config(other.config)` in diffusers:
            a key of `SCHEDULERS` or a diffusers class name. Options that the class does not have are ignored.

    Raises:
        DistrijaxError: unknown class, unknown option, or an option's value that is not supported.
    """
    name = class_name if class_name is not None else config.get("_class_name")
    if not isinstance(name, str):
        raise DistrijaxError(f"the scheduler config names no class: _class_name is {name!r}")
    cls = _class_named(name)
    options = {field.name for field in cls.options()}
    defaulted = set(config.get("_use_default_values", ()))
    given: dict[str, Any] = {}
    unknown: list[str] = []
    for key, value in config.items():
        if key.startswith("_") or key in defaulted:
            continue
        if key in options:
            given[key] = value
        elif key in cls.neutral:
            if value is not None and value != cls.neutral[key]:
                raise DistrijaxError(
                    f"{cls.class_name}: {key} = {value!r} is not supported; leave it at {cls.neutral[key]!r}"
                )
        elif key not in _IGNORED:
            unknown.append(key)
    if unknown:
        raise DistrijaxError(
            f"{cls.class_name}: unknown option {', '.join(sorted(unknown))}; supported: {', '.join(sorted(options))}"
        )
    return cls(**given, origin=dict(config))


__all__ = [
    "SCHEDULERS",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "Schedule",
    "Scheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
    "scheduler_from_config",
]

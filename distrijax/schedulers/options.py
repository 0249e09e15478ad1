"""The options of diffusers' schedulers and their allowed values."""

import math
from collections.abc import Mapping

from distrijax.checks import array_of, finite_number, numbers, one_of, true_or_false, whole_number
from distrijax.schedulers import tables

CHOICES: dict[str, tuple[str, ...]] = {
    "beta_schedule": tables.BETA_SCHEDULES,
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
}
"""Allowed values of string options."""

SIGMA_OPTIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Options that place the noise levels by a formula instead of at the spaced timesteps."""

_ALL_OPTIONS = """
    clip_sample clip_sample_range set_alpha_to_one thresholding dynamic_thresholding_ratio sample_max_value
    original_inference_steps timestep_scaling interpolation_type use_karras_sigmas use_exponential_sigmas
    use_beta_sigmas use_lu_lambdas use_flow_sigmas flow_shift use_dynamic_shifting time_shift_type shift_terminal
    sigma_min sigma_max sigma_data sigma_schedule rho noise_sampler_seed timestep_type final_sigmas_type solver_order
    algorithm_type solver_type solver_p lower_order_final euler_at_final predict_x0 disable_corrector
    lambda_min_clipped variance_type skip_prk_steps
"""
ALL_OPTIONS = frozenset(_ALL_OPTIONS.split())
"""Options that only some schedulers have. The others ignore them, so that any class can read any config."""


def checked_option(
    class_name: str,
    option: str,
    value: object,
    default: object,
    choices: Mapping[str, tuple[str, ...]],
    bounds: Mapping[str, tuple[int, int | None]],
) -> object:
    """Return the value of an option, converted to the type of its default.

    Args:
        default: replaces None where diffusers allows that.
        choices: allowed values of string options, where they differ from `CHOICES`.
        bounds: smallest and largest value of integer options, where they do not begin at 0.
    """
    name = f"{class_name}: {option}"
    if option in choices or option in CHOICES:
        return one_of(name, value, choices.get(option) or CHOICES[option])
    if value is None and (default is None or isinstance(default, bool | tuple)):
        return default
    if isinstance(default, bool):
        return true_or_false(name, value)
    if isinstance(default, int):
        return whole_number(name, value, *bounds.get(option, (0, None)))
    if isinstance(default, tuple):
        return tuple(whole_number(name, index) for index in array_of(name, value, "a list of numbers").ravel().tolist())
    if option == "trained_betas":
        return tuple(numbers(name, value).tolist())
    if isinstance(value, float) and value == default == -math.inf:
        return default
    return finite_number(name, value)

"""The options of diffusers' schedulers and their allowed values."""

import math

from distrijax.config import entry
from distrijax.config.entry import Rule
from distrijax.schedulers import tables

SIGMA_OPTIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Options that place the noise levels by a formula instead of at the spaced timesteps."""


def _finite_or_unset(name: str, value: object) -> float:
    return -math.inf if isinstance(value, float) and value == -math.inf else entry.number()(name, value)


_BETA, _FLAG, _ABOVE_ZERO = entry.number(1e-8, 0.999), entry.flag, entry.number(1e-8, 1e8)

OPTIONS: dict[str, Rule] = {
    "beta_end": _BETA,
    "beta_schedule": entry.choice(*tables.BETA_SCHEDULES),
    "beta_start": _BETA,
    "clip_sample": _FLAG,
    "clip_sample_range": _ABOVE_ZERO,
    "disable_corrector": entry.several(entry.whole(0, 1_000_000), 0, 1_000_000),
    "euler_at_final": _FLAG,
    "final_sigmas_type": entry.choice("zero", "sigma_min"),
    "interpolation_type": entry.choice("linear", "log_linear"),
    "lambda_min_clipped": _finite_or_unset,
    "lower_order_final": _FLAG,
    "num_train_timesteps": entry.whole(2, 1_000_000),
    "original_inference_steps": entry.whole(1, 1_000_000),
    "predict_x0": _FLAG,
    "prediction_type": entry.choice("epsilon", "v_prediction", "sample"),
    "rescale_betas_zero_snr": _FLAG,
    "set_alpha_to_one": _FLAG,
    "rho": _ABOVE_ZERO,
    "sigma_data": _ABOVE_ZERO,
    "sigma_max": entry.optional(_ABOVE_ZERO),
    "sigma_min": entry.optional(_ABOVE_ZERO),
    "skip_prk_steps": _FLAG,
    "solver_order": entry.whole(1, 8),
    "steps_offset": entry.whole(0, 1_000_000),
    "timestep_scaling": _ABOVE_ZERO,
    "timestep_spacing": entry.choice("linspace", "leading", "trailing"),
    "timestep_type": entry.choice("discrete", "continuous"),
    "trained_betas": entry.optional(entry.several(entry.number(0, 1), 0, 1_000_000)),
    **dict.fromkeys(SIGMA_OPTIONS, _FLAG),
    # Thresholding takes a quantile over the whole picture, so it is not elementwise, and diffusers calls it unsuitable
    # for latents. The others are for models of flows, or for ones that predict a variance too.
    **entry.only(False, "thresholding use_flow_sigmas use_dynamic_shifting"),
    # The noise of a step comes from the call's generator, not from a seed of its own.
    **entry.only(None, "shift_terminal solver_p noise_sampler_seed"),
    "variance_type": lambda name, value: entry.choice(None)(name, value if "learned" in str(value) else None),
}
"""What each option may be, unless a scheduler's own `rules` say otherwise."""

_OF_OTHERS = """
    dynamic_thresholding_ratio sample_max_value flow_shift time_shift_type sigma_schedule algorithm_type solver_type
"""
ALL_OPTIONS = {*OPTIONS, *_OF_OTHERS.split()}
"""Options that some scheduler has. The others ignore them without a word, so that any class can read any config."""

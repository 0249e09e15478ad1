"""Inpainting with a U-Net that sees no mask: after every step, what is not masked becomes the given picture again."""

import dataclasses

from jax import Array

from distrijax.sampling.denoise import Maps, Steps
from distrijax.schedulers import Schedule

MASK, CLEAN, NOISE = "mask", "clean", "noise"
"""Names of the blend's maps: 1 where to paint [B, h, W, 1], and the picture's latents and noise [B, h, W, C]."""

_SIGNAL, _NOISE_LEVEL = "blend_signal", "blend_noise_level"


def with_blend(schedule: Schedule) -> Schedule:
    """Return a schedule whose coefficients also say how noisy the given picture is after each step.

    After the last step it is clean, even if `denoising_end` cuts the run short there, as in diffusers.
    """
    rows = dict(zip((_SIGNAL, _NOISE_LEVEL), schedule.after, strict=True))
    return dataclasses.replace(schedule, coefficients=schedule.coefficients | rows)


def blend(latents: Array, now: Steps, maps: Maps) -> Array:
    """Return the latents where the mask is 1, and the given picture with the noise of this step where it is 0."""
    kept = now.coefficients[_SIGNAL] * maps[CLEAN] + now.coefficients[_NOISE_LEVEL] * maps[NOISE]
    return (1 - maps[MASK]) * kept + maps[MASK] * latents

"""The check that what one stage hands to the next is finite: a black picture would not say where it went wrong."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from distrijax.errors import DistrijaxError


def check_finite(finite: object, what: str, component: str, dtype: DTypeLike) -> None:
    """Raise DistrijaxError unless `finite` is true.

    Args:
        what: is not finite, for the message.
        component: the model that computed it, in `dtype`.
    """
    if finite:
        return
    cure = f"the weights of {component} may be damaged, or what it was given; try another {component}"
    if jnp.dtype(dtype) == jnp.float16:
        other = ', or another one, such as vae="madebyollin/sdxl-vae-fp16-fix"' if component == "vae" else ""
        cure = f'{component} overflows in float16; load with dtype={{"{component}": "bfloat16"}}{other}'
    raise DistrijaxError(f"{what} not finite (NaN or infinity): {cure}")


def check_steps(finite: object, start: int, stop: int, total: int, dtype: DTypeLike) -> None:
    """Check the latents after these steps of the U-Net."""
    steps = f"step {stop}" if stop == start + 1 else f"steps {start + 1} to {stop}"
    check_finite(finite, f"in denoising {steps} of {total}, the latents became", "unet", dtype)

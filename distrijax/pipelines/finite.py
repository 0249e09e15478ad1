"""The check that what one stage hands to the next is finite: a black picture would not say where it went wrong."""

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from distrijax.errors import DistrijaxError
from distrijax.sampling.inputs import TextInputs

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline


def check_finite(finite: object, what: str, cure: str) -> None:
    """Raise DistrijaxError unless `finite` is true."""
    if not finite:
        raise DistrijaxError(f"{what} not finite (NaN or infinity): {cure}")


def check_text(pipe: "SDXLPipeline", text: TextInputs) -> None:
    """Check the encoded prompts."""
    dtype = pipe.text_encoder_2.dtype if pipe.text_encoder_2 is not None else text.context.dtype
    cure = _cure(dtype, "text_encoder_2", "a text encoder, or the embeddings that were given")
    check_finite(all(np.isfinite(np.asarray(x)).all() for x in text[:2]), "the prompt's embeddings are", cure)


def check_steps(pipe: "SDXLPipeline", finite: object, first: int, last: int, total: int) -> None:
    """Check the latents after steps `first` to `last`, counted from 1."""
    steps = f"step {last}" if first == last else f"steps {first} to {last}"
    check_finite(finite, f"in denoising {steps} of {total}, the latents became", _cure(pipe.dtype, "unet", "the U-Net"))


def check_picture(pipe: "SDXLPipeline", finite: object) -> None:
    """Check a decoded picture."""
    cure = _cure(pipe.vae.dtype, "vae", "the autoencoder") + ', such as vae="madebyollin/sdxl-vae-fp16-fix"'
    check_finite(finite, "the latents are finite, but the picture decoded from them is", cure)


def _cure(dtype: DTypeLike, component: str, culprit: str) -> str:
    if jnp.dtype(dtype) == jnp.float16:
        return f'{culprit} overflows in float16; load with dtype={{"{component}": "bfloat16"}}, or another {component}'
    return f"the weights of {culprit} are damaged, or of another kind; load with another {component}"

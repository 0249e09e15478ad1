"""The last stage of a call: latents to pictures."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

from distrijax.models.autoencoder_tiny import Autoencoder
from distrijax.nn.module import Weights
from distrijax.parallel.options import for_autoencoder
from distrijax.pipelines.finite import check_finite
from distrijax.pipelines.output import to_pil

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline
    from distrijax.pipelines.stages import Call


def decode(pipe: "SDXLPipeline", call: "Call", vae: Weights[Autoencoder], latents: Array) -> Any:
    """Return latents, an array of pictures or PIL images, as the call's `output_type` says."""
    height, output_type = call.shape[2], call.output_type
    if output_type == "latent":
        return pipe.programs.crop(latents, parallel=call.parallel.program_key, height=height).transpose(0, 3, 1, 2)
    with pipe.programs.timed("decoding"):
        images = decoded(pipe, vae, latents, height)
    return images if output_type == "np" else to_pil(images)


def decoded(pipe: "SDXLPipeline", vae: Weights[Autoencoder], latents: Array, height: int) -> np.ndarray:
    """Return the pictures [B, H, W, 3] in [0, 1] of latents on the devices, one of each group after the other."""
    parallel, pictures = for_autoencoder(pipe.parallel), []
    for i in range(len(latents) // pipe.parallel.data):
        picture, finite = pipe.programs.decode(vae, latents, np.int32(i), parallel=parallel, height=height)
        check_finite(finite, "the latents are finite, but the picture's pixels are", "vae", pipe.vae.dtype)
        pictures.append(np.asarray(picture))
    images = np.stack(pictures, 1)  # [data, B / data, H, W, 3]
    return images.reshape(-1, *images.shape[2:])

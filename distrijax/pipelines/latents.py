"""From the pictures of a call to the latents that its run starts from."""

from typing import TYPE_CHECKING

import numpy as np

from distrijax.errors import DistrijaxError
from distrijax.models.vae import VAE
from distrijax.nn.module import Weights
from distrijax.parallel.options import for_autoencoder
from distrijax.pipelines.images import Pictures
from distrijax.pipelines.randomness import Generators, normal

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline


def as_latents(
    pipe: "SDXLPipeline", vae: Weights[VAE], pictures: Pictures, generators: Generators, copies: int = 1
) -> np.ndarray:
    """Return latents in the U-Net's scale, drawn from the VAE's distribution, [copies * N, h, w, C].

    Args:
        pictures: N pictures; latents are returned as they are, and no noise is drawn for them.
        generators: one, or one for each picture and its copies; more are not used.
        copies: number of times to draw latents of each picture: all pictures, then all again.
    """
    if pictures.is_latent:
        return pictures.values
    with pipe.programs.timed("encoding"):
        parallel = for_autoencoder(pipe.parallel, encoding=True)
        moments = [
            [np.asarray(x) for x in pipe.programs.encode_image(vae, picture[None], parallel=parallel)]
            for picture in pictures.values
        ]
    mean, logvar = (
        np.concatenate(parts * copies).astype(np.float32) for parts in map(list, zip(*moments, strict=True))
    )
    noise = noise_of_latents(pipe, mean.shape, generators)
    return pipe.vae.config.to_unet(mean + np.exp(0.5 * logvar) * noise)


def noise_of_latents(pipe: "SDXLPipeline", shape: tuple[int, ...], generators: Generators) -> np.ndarray:
    """Return the noise with which latents [N, h, w, C] are drawn: of one generator, or of the first N."""
    dtype = np.float32 if pipe.vae.config.force_upcast else pipe.vae.dtype  # which diffusers encodes in
    return normal(generators[: shape[0]], shape, dtype)


def repeat_to(batch: int, x: np.ndarray) -> np.ndarray:
    """Return `batch` entries: those of `x` in order, again and again."""
    return np.concatenate([x] * (batch // len(x)))


def check_divides(what: str, count: int, pictures: int) -> None:
    """Check that so many inputs can be repeated to fill a batch."""
    if count > pictures or pictures % count:
        raise DistrijaxError(f"{count} {what} cannot be repeated to {pictures} pictures; give a divisor of {pictures}")

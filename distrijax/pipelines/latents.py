"""From the pictures of a call to the latents that its run starts from."""

from typing import TYPE_CHECKING

import jax
import numpy as np
from jax import Array

from distrijax.errors import DistrijaxError
from distrijax.models.autoencoder_tiny import Autoencoder
from distrijax.nn.module import Weights
from distrijax.parallel.options import for_autoencoder
from distrijax.pipelines.images import Pictures
from distrijax.pipelines.randomness import Generators, normal

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline


def as_latents(
    pipe: "SDXLPipeline", vae: Weights[Autoencoder], pictures: Pictures, generators: Generators, copies: int = 1
) -> np.ndarray:
    """Return latents in the U-Net's scale, drawn from the VAE's distribution, [copies * N, h, w, C].

    Args:
        pictures: N pictures; latents are returned as they are, and no noise is drawn for them.
        generators: one, or one for each picture and its copies; more are not used.
        copies: number of times to draw latents of each picture: all pictures, then all again.
    """
    if pictures.is_latent:
        return pictures.values
    mean, logvar = _moments(pipe, vae, pictures, copies)
    if logvar is not None:  # a tiny autoencoder's latents are not drawn
        mean = mean + np.exp(0.5 * logvar) * noise_of_latents(pipe, mean.shape, generators)
    return pipe.vae.config.to_unet(mean)


def mean_latents(pipe: "SDXLPipeline", vae: Weights[Autoencoder], pictures: Pictures) -> np.ndarray:
    """Return the means of the distributions that `as_latents` draws from."""
    if pictures.is_latent:
        return pictures.values
    return pipe.vae.config.to_unet(_moments(pipe, vae, pictures, 1)[0])


def _moments(
    pipe: "SDXLPipeline", vae: Weights[Autoencoder], pictures: Pictures, copies: int
) -> tuple[np.ndarray, np.ndarray | None]:
    with pipe.programs.timed("encoding"):
        parallel = for_autoencoder(pipe.parallel, encoding=True)
        moments = [pipe.programs.encode_image(vae, picture[None], parallel=parallel) for picture in pictures.values]

    def joined(*parts: Array) -> np.ndarray:
        return np.concatenate([np.asarray(part) for part in parts] * copies).astype(np.float32)

    mean, logvar = jax.tree.map(joined, *moments)
    return mean, logvar


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

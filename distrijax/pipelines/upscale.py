"""Large pictures from small ones: enlarge, then image to image at the large size, over all devices."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from distrijax.checks import finite_number, one_of
from distrijax.errors import DistrijaxError
from distrijax.pipelines.image_to_image import StableDiffusionXLImg2ImgPipeline
from distrijax.pipelines.images import ImageInput, preprocess_images
from distrijax.pipelines.latents import mean_latents
from distrijax.pipelines.output import StableDiffusionXLPipelineOutput

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline

METHODS = "lanczos", "latent"


def upscale(
    pipe: "SDXLPipeline",
    image: ImageInput,
    factor: float = 2.0,
    *,
    method: str = "lanczos",
    strength: float = 0.35,
    **call: Any,
) -> StableDiffusionXLPipelineOutput:
    """See `SDXLPipeline.upscale`."""
    factor = finite_number("factor", factor, 1, 8)
    one_of("method", method, METHODS)
    finite_number("strength", strength, 0, 1)
    scale, channels = pipe.vae_scale_factor, pipe.vae.config.latent_channels
    pictures = preprocess_images(image, scale, channels)
    if pictures.is_latent and method != "latent":
        raise DistrijaxError(f"image is latents, which method {method!r} cannot enlarge; choose method 'latent'")
    rows, columns = (max(1, round(side * factor)) for side in pictures.latent_size(scale))
    large: np.ndarray | Array
    if method == "latent":
        latents = mean_latents(pipe, pipe.place_parts(["vae"])["vae"], pictures)
        large = jnp.asarray(_resized(latents, rows, columns, Image.Resampling.BILINEAR).transpose(0, 3, 1, 2))
    else:
        pixels = _resized(pictures.values, rows * scale, columns * scale, Image.Resampling.LANCZOS)
        large = np.clip(pixels / 2 + 0.5, 0, 1)  # Lanczos overshoots at edges
    follower = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    follower.progress_options = pipe.progress_options
    return follower(image=large, strength=strength, **call)


def _resized(images: np.ndarray, height: int, width: int, how: Image.Resampling) -> np.ndarray:
    """Return images [N, H, W, C] in another size, resampled channel by channel in fp32."""
    planes = images.astype(np.float32).transpose(0, 3, 1, 2)
    resized = [[np.asarray(Image.fromarray(plane).resize((width, height), how)) for plane in x] for x in planes]
    return np.asarray(resized).transpose(0, 2, 3, 1)

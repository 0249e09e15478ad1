"""Image to image: diffusers' `StableDiffusionXLImg2ImgPipeline`, argument for argument."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from distrijax.checks import array_of
from distrijax.errors import DistrijaxError
from distrijax.models.autoencoder_tiny import Autoencoder
from distrijax.nn.module import Weights
from distrijax.pipelines.base import SDXLPipeline
from distrijax.pipelines.callback import StepFunction
from distrijax.pipelines.images import ImageInput, Pictures, preprocess_images
from distrijax.pipelines.latents import as_latents, check_divides, repeat_to
from distrijax.pipelines.make import make_pictures
from distrijax.pipelines.maps import Start
from distrijax.pipelines.output import Seed, StableDiffusionXLPipelineOutput
from distrijax.pipelines.randomness import checked_latents, normal
from distrijax.pipelines.refine import check_runs


class StableDiffusionXLImg2ImgPipeline(SDXLPipeline):
    """The image-to-image pipeline; `from_pipe` shares the parts of a pipeline that is already loaded."""

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        image: ImageInput = None,
        strength: float = 0.3,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | str | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Any = None,
        latents: ArrayLike | None = None,
        prompt_embeds: ArrayLike | None = None,
        negative_prompt_embeds: ArrayLike | None = None,
        pooled_prompt_embeds: ArrayLike | None = None,
        negative_pooled_prompt_embeds: ArrayLike | None = None,
        *,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        clip_skip: int | None = None,
        callback_on_step_end: StepFunction | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: Seed = None,
        noise: str = "torch",
        prompt_syntax: str = "plain",
        refiner: SDXLPipeline | None = None,
        switch_at: float = 0.8,
        offload: bool = False,
    ) -> StableDiffusionXLPipelineOutput:
        """Make `num_images_per_prompt` pictures of each prompt, starting from noisy versions of `image`.

        The size is the image's, rounded down to a multiple of the VAE's scale factor (8). Arguments that are not listed
        here mean the same as in `StableDiffusionXLPipeline`.

        Args:
            image: a PIL image, an array [H, W, C] or [B, H, W, C] in [0, 1], a torch tensor or JAX array [B, C, H, W]
                in [0, 1], latents [B, latent channels, h, w] in the U-Net's scale, or a list. Fewer images than
                pictures are repeated in order: with two images, pictures take the first, the second, the first, ...
            strength: fraction of the steps to take, from 0 to 1; a higher one keeps less of the image.
            denoising_start: fraction of the noise schedule, between 0 and 1, after which to start, adding no noise:
                `image` holds the latents of a pipeline that stopped there. `strength` is then ignored.
            latents: initial latents [B, C, h, w], used unchanged in place of a noisy `image`.

        Raises:
            DistrijaxError: an argument is invalid; raised before anything is compiled.
        """
        given = locals()
        scale = self.vae_scale_factor
        if latents is not None:
            pictures = Pictures(_four_axes(latents), is_latent=True)
        elif image is None:
            raise DistrijaxError("there is no image: give image, or latents to start from")
        else:
            pictures = preprocess_images(image, scale, self.vae.config.latent_channels)
        call = check_runs(self, given, *pictures.latent_size(scale), image_to_image=True)
        if latents is not None:
            clean = checked_latents(latents, call.shape).transpose(0, 2, 3, 1)
            return make_pictures(self, call, lambda _: Start(clean))
        batch = call.prompts.batch
        check_divides("images", len(pictures.values), batch)

        def start(vae: Weights[Autoencoder]) -> Start:
            # With a generator for each picture of the batch, each draws its own noise for an image that they share.
            copies = batch // len(pictures.values) if len(call.generators) > 1 else 1
            clean = repeat_to(batch, as_latents(self, vae, pictures, call.generators, copies))
            if denoising_start is not None:
                return Start(clean)
            return Start(np.asarray(call.schedule.add_noise(clean, normal(call.generators, clean.shape))))

        return make_pictures(self, call, start, encodes=not pictures.is_latent)


def _four_axes(latents: ArrayLike) -> np.ndarray:
    """Return latents [B, C, h, w] with their channels last: their size is that of the pictures."""
    array = array_of("latents", latents)
    if array.ndim != 4:
        raise DistrijaxError(f"latents have the shape {array.shape}; it must be (B, C, h, w)")
    return array.transpose(0, 2, 3, 1)

"""Inpainting: diffusers' `StableDiffusionXLInpaintPipeline`, argument for argument."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from distrijax.models.autoencoder_tiny import Autoencoder
from distrijax.models.vae import VAE
from distrijax.nn.module import Weights
from distrijax.pipelines.arguments import call_with
from distrijax.pipelines.base import SDXLPipeline
from distrijax.pipelines.callback import StepFunction
from distrijax.pipelines.canvas import canvas_of
from distrijax.pipelines.images import ImageInput, picture_size
from distrijax.pipelines.latents import as_latents, noise_of_latents, repeat_to
from distrijax.pipelines.make import make_pictures
from distrijax.pipelines.maps import MapKinds, Start
from distrijax.pipelines.output import Seed, StableDiffusionXLPipelineOutput
from distrijax.pipelines.randomness import checked_latents, normal
from distrijax.pipelines.stages import check_call
from distrijax.sampling.blend import CLEAN, MASK, NOISE, blend, with_blend
from distrijax.sampling.denoise import EXTRA_CHANNELS


class StableDiffusionXLInpaintPipeline(SDXLPipeline):
    """The inpainting pipeline, for U-Nets that see the mask (9 input channels) and for all others (4)."""

    takes_mask = True

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        image: ImageInput = None,
        mask_image: ImageInput = None,
        masked_image_latents: ArrayLike | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 0.9999,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | str | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 7.5,
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
    ) -> StableDiffusionXLPipelineOutput:
        """Make `num_images_per_prompt` pictures of each prompt, with `image` where `mask_image` is black.

        Arguments that are not listed here mean the same as in `StableDiffusionXLPipeline`.

        Args:
            image: as in `StableDiffusionXLImg2ImgPipeline`, but resized to `height` and `width`. Fewer images or masks
                than pictures are repeated in order.
            mask_image: bright (0.5 or more) where to paint: a PIL image, an array [H, W] or [B, H, W] in [0, 1], or a
                list. Each latent takes the mask's pixel at its upper left corner, so thin lines can fall between.
            masked_image_latents: [B, C, h, w] in the U-Net's scale, for a U-Net that sees the mask; by default those of
                `image` with grey where to paint.
            height, width: of the pictures in pixels; by default the size that the U-Net was trained on, not `image`'s.
            padding_mask_crop: paint only what the mask shows, with this many pixels around it, enlarged to `height` and
                `width`; then put it back into `image`, whose other pixels stay as they are. For PIL images.
            strength: fraction of the steps to take, from 0 to 1; a higher one keeps less of what is painted over. At 1,
                it starts from noise alone.
            denoising_start: fraction of the noise schedule, between 0 and 1, after which to start, adding no noise:
                `image` holds the latents of a pipeline that stopped there. `strength` is then ignored.
            latents: unit-variance noise [B, C, h, w] in place of the generator's, to which no `image` is added.
            callback_on_step_end_tensor_inputs: also mask, and masked_image_latents if the U-Net sees the mask.

        Raises:
            DistrijaxError: an argument is invalid; raised before anything is compiled.
        """
        given = locals()
        canvas = call_with(canvas_of, given, pipe=self, size=picture_size(self, height, width))
        rows, columns = canvas.masks.shape[1:3]
        channels = self.vae.config.latent_channels
        sees_mask = self.unet.config.in_channels > channels
        maps = _seen(channels) if sees_mask else _blended(channels)
        call = check_call(self, given, rows, columns, image_to_image=True, maps=maps)
        batch, generators = call.prompts.batch, call.generators
        canvas.check_counts(batch)
        given_noise = None if latents is None else checked_latents(latents, call.shape).transpose(0, 2, 3, 1)
        starts_from_noise = denoising_start is None and (latents is not None or strength == 1)
        if not sees_mask:
            call = dataclasses.replace(call, schedule=with_blend(call.schedule))

        def start(vae: Weights[Autoencoder]) -> Start:
            # The order of draws is diffusers': the picture's latents, the noise, the masked picture's latents.
            clean = None
            if not (sees_mask and starts_from_noise):
                clean = repeat_to(batch, as_latents(self, vae, canvas.pictures, generators))
            unit = given_noise
            if unit is None or denoising_start is not None:
                unit = normal(generators, (batch, rows, columns, channels))
            if clean is None or starts_from_noise:
                begin = unit * np.float32(call.schedule.init_noise_sigma)
            else:
                begin = np.asarray(call.schedule.add_noise(clean, unit)) if denoising_start is None else clean
            mask = repeat_to(batch, canvas.masks)
            if sees_mask or clean is None:
                masked = repeat_to(batch, as_latents(self, vae, canvas.masked, generators))
                return Start(begin, {EXTRA_CHANNELS: np.concatenate([mask, masked], -1)})
            if not canvas.masked.is_latent and isinstance(self.vae, VAE):
                # diffusers encodes it, too: the noise of the steps is drawn after that
                noise_of_latents(self, (len(canvas.masked.values), rows, columns, channels), generators)
            return Start(begin, {MASK: mask, CLEAN: clean, NOISE: unit})

        return make_pictures(self, call, start, encodes=not canvas.pictures.is_latent, finish=canvas.finish)


def _blended(channels: int) -> MapKinds:
    """Return the maps for a U-Net that does not see the mask, of latents with so many channels."""
    return MapKinds({MASK: 1, CLEAN: channels, NOISE: channels}, {"mask": (MASK, slice(0, 1))}, blend)


def _seen(channels: int) -> MapKinds:
    """Return the maps for a U-Net that sees the mask and the masked picture."""
    parts = {"mask": (EXTRA_CHANNELS, slice(0, 1)), "masked_image_latents": (EXTRA_CHANNELS, slice(1, None))}
    return MapKinds({EXTRA_CHANNELS: 1 + channels}, parts)

"""Image to image: diffusers' `StableDiffusionXLImg2ImgPipeline`, argument for argument."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from distrijax.checks import array_of
from distrijax.errors import DistrijaxError
from distrijax.models.vae import VAE
from distrijax.nn.module import Weights
from distrijax.parallel.options import for_autoencoder
from distrijax.pipelines.base import SDXLPipeline
from distrijax.pipelines.callback import Callback, StepFunction
from distrijax.pipelines.images import ImageInput, preprocess_images
from distrijax.pipelines.make import make_pictures
from distrijax.pipelines.output import Seed, StableDiffusionXLPipelineOutput
from distrijax.pipelines.randomness import Generators, checked_latents
from distrijax.pipelines.stages import check_call
from distrijax.pipelines.steps import call_schedule
from distrijax.sampling.noise import randn
from distrijax.schedulers import Schedule
from distrijax.text.prompt import PromptInputs
from distrijax.text.time_ids import image_to_image_time_ids


class StableDiffusionXLImg2ImgPipeline(SDXLPipeline):
    """The image-to-image pipeline; `from_pipe` shares the parts of a pipeline that is already loaded."""

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        image: ImageInput = None,
        strength: float = 0.3,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | None = None,
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
        prompts = PromptInputs(
            prompt,
            prompt_2,
            negative_prompt,
            negative_prompt_2,
            num_images_per_prompt,
            clip_skip,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
        )
        if latents is not None:
            latents = array_of("latents", latents)
            if latents.ndim != 4:
                raise DistrijaxError(f"latents have the shape {latents.shape}; it must be (B, C, h, w)")
            pictures, is_latent = np.empty((0, 0, 0, 0), np.float32), True
            rows, columns = latents.shape[2:]
        elif image is None:
            raise DistrijaxError("there is no image: give image, or latents to start from")
        else:
            pictures, is_latent = preprocess_images(image, self.vae_scale_factor, self.vae.config.latent_channels)
            _check_count(len(pictures), prompts.batch)
            scale_factor = 1 if is_latent else self.vae_scale_factor
            rows, columns = pictures.shape[1] // scale_factor, pictures.shape[2] // scale_factor
        schedule = call_schedule(
            self.scheduler,
            num_inference_steps,
            timesteps,
            sigmas,
            eta,
            strength=strength,
            denoising_start=denoising_start,
            denoising_end=denoising_end,
        )
        call = check_call(
            self,
            prompts,
            schedule,
            (rows, columns),
            Callback.of(callback_on_step_end, callback_on_step_end_tensor_inputs),
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            generator=generator,
            seed=seed,
            noise=noise,
            output_type=output_type,
            return_dict=return_dict,
            cross_attention_kwargs=cross_attention_kwargs,
        )
        pixels = rows * self.vae_scale_factor, columns * self.vae_scale_factor
        ids = image_to_image_time_ids(
            batch=prompts.batch,
            size=pixels,
            original_size=original_size,
            target_size=target_size,
            crops_coords_top_left=crops_coords_top_left,
            negative_original_size=negative_original_size,
            negative_crops_coords_top_left=negative_crops_coords_top_left,
            negative_target_size=negative_target_size,
            aesthetic_score=aesthetic_score,
            negative_aesthetic_score=negative_aesthetic_score,
            requires_aesthetics_score=self.requires_aesthetics_score,
        )
        given = None if latents is None else checked_latents(latents, call.shape).transpose(0, 2, 3, 1)

        def start(vae: Weights[VAE]) -> np.ndarray:
            if given is not None:
                return given
            clean = pictures if is_latent else self._encode_images(vae, pictures, call.generators, prompts.batch)
            clean = np.concatenate([clean] * (prompts.batch // len(clean)))
            return _with_noise(clean, call.generators, schedule) if denoising_start is None else clean

        return make_pictures(self, call, ids, start, encodes=not is_latent)

    def _encode_images(self, vae: Weights[VAE], pictures: np.ndarray, generators: Generators, batch: int) -> np.ndarray:
        """Return latents [N, h, w, C] in the U-Net's scale, drawn from the VAE's distribution of pictures [N, H, W, 3].

        With one generator per picture of the batch, each draws its own noise, so pictures are repeated first.
        """
        with self.programs.timed("encoding"):
            parallel = for_autoencoder(self.parallel, encoding=True)
            moments = [
                [np.asarray(x) for x in self.programs.encode_image(vae, picture[None], parallel=parallel)]
                for picture in pictures
            ]
        mean, logvar = (np.concatenate(parts).astype(np.float32) for parts in zip(*moments, strict=True))
        if len(generators) > 1:
            mean, logvar = (np.concatenate([x] * (batch // len(x))) for x in (mean, logvar))
        n, h, w, c = mean.shape
        noise = randn(generators, (n, c, h, w)).transpose(0, 2, 3, 1)
        return (mean + np.exp(0.5 * logvar) * noise) * np.float32(self.vae.config.scaling_factor)


def _with_noise(clean: np.ndarray, generators: Generators, schedule: Schedule) -> np.ndarray:
    b, h, w, c = clean.shape
    noise = randn(generators, (b, c, h, w)).transpose(0, 2, 3, 1)
    return np.asarray(schedule.add_noise(clean, noise))


def _check_count(images: int, pictures: int) -> None:
    if images > pictures or pictures % images:
        raise DistrijaxError(f"{images} images cannot be repeated to {pictures} pictures; give a divisor of {pictures}")

"""Text to image: diffusers' `StableDiffusionXLPipeline`, argument for argument."""

from collections.abc import Sequence
from typing import Any

from jax.typing import ArrayLike

from distrijax.pipelines.base import SDXLPipeline
from distrijax.pipelines.callback import StepFunction
from distrijax.pipelines.images import picture_size
from distrijax.pipelines.make import make_pictures
from distrijax.pipelines.maps import Start
from distrijax.pipelines.output import Seed, StableDiffusionXLPipelineOutput
from distrijax.pipelines.randomness import initial_latents
from distrijax.pipelines.refine import check_runs


class StableDiffusionXLPipeline(SDXLPipeline):
    """The text-to-image pipeline: `from_pretrained` loads it, and a call makes pictures."""

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | str | None = None,
        sigmas: Sequence[float] | None = None,
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
        clip_skip: int | None = None,
        callback_on_step_end: StepFunction | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        seed: Seed = None,
        noise: str = "torch",
        prompt_syntax: str = "plain",
        refiner: SDXLPipeline | None = None,
        switch_at: float = 0.8,
        offload: bool = False,
    ) -> StableDiffusionXLPipelineOutput:
        """Make `num_images_per_prompt` pictures of each prompt, adjacent in the batch.

        Args:
            prompt: what to draw; a list makes a batch.
            prompt_2: for the second text encoder; by default `prompt`.
            height, width: of the pictures in pixels, multiples of the VAE's scale factor (8). By default the size that
                the U-Net was trained on.
            num_inference_steps: denoising steps.
            timesteps, sigmas: custom steps in place of `num_inference_steps`, if the scheduler supports them. The
                timesteps "ays" are as many of Align Your Steps.
            denoising_end: fraction of the noise schedule, between 0 and 1, after which to stop, for a refiner.
            guidance_scale: classifier-free guidance. At 1 or below there is none, and each step costs half as much.
            negative_prompt, negative_prompt_2: what to guide away from.
            eta: noise of DDIM and TCD, from 0 to 1; other schedulers ignore it.
            generator: a whole number or a `torch.Generator`, whose initial seed is read; or a list with one for
                each picture. Pictures are those that diffusers makes with a CPU generator of that seed. With
                `noise="jax"`, also a `jax.random.key`.
            latents: unit-variance noise [B, C, h, w] in place of the generator's.
            prompt_embeds, negative_prompt_embeds: [prompts, T, D], in place of the texts, as `encode_prompt` makes
                them: T is 77 tokens and D the widths of both text encoders together (768 + 1280).
            pooled_prompt_embeds, negative_pooled_prompt_embeds: [prompts, P], P the width of the projection (1280).
            output_type: "pil", "np" or "latent", which is scaled as the U-Net has it.
            return_dict: return an output object; otherwise a tuple with the images.
            cross_attention_kwargs: `{"scale": s}` multiplies the weights of adapters by s.
            guidance_rescale: from 0 to 1, against the over-exposure of strong guidance (arXiv 2305.08891).
            original_size, crops_coords_top_left, target_size: SDXL's micro-conditioning, (height, width) or (top, left)
                in pixels (arXiv 2307.01952, section 2.2); the negative ones likewise.
            clip_skip: layers of the text encoders to skip below the penultimate one, the default.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after every step. It may return a
                dictionary of tensors to replace, or set `pipe.interrupt`. Each step then waits for the host; a
                `StepCallback` runs after every few.
            callback_on_step_end_tensor_inputs: names of `tensors`: latents, prompt_embeds, add_text_embeds,
                add_time_ids; and, which cannot be replaced, pred_original_sample, the latents without noise as the step
                predicts them, and preview, pictures of these in [0, 1], made by `pipe.preview` or else by the VAE.
            aesthetic_score, negative_aesthetic_score: for a U-Net that takes them (the refiner).
            seed: the same as `generator`, as a number or a list. By default a new one, which the output contains.
            noise: random number generator of a seed: "torch", as torch draws on a CPU, or "jax".
            prompt_syntax: "plain", as in diffusers; or "a1111" or "compel", for weights and prompts of any length.
            refiner: a pipeline of the same devices that takes the last steps, with its own U-Net, text encoders and
                scheduler, and decodes.
            switch_at: fraction of the noise schedule, between 0 and 1, at which the refiner takes over.
            offload: keep only the U-Net on the devices that is running, and the other one on the host.

        Raises:
            DistrijaxError: an argument is invalid; raised before anything is compiled.
        """
        given = locals()
        height, width = picture_size(self, height, width)
        call = check_runs(self, given, height // self.vae_scale_factor, width // self.vae_scale_factor)
        start = initial_latents(call.generators, call.shape, call.schedule, latents)
        return make_pictures(self, call, lambda _: Start(start))

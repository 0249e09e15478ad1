"""Prompt in, picture out: diffusers' `StableDiffusionXLPipeline`, argument for argument."""

import dataclasses
import secrets
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from PIL import Image
from tqdm import tqdm

from distrijax.checkpoint.load import load
from distrijax.compile import Program, keep_compiled_programs, kept_profiles
from distrijax.denoise import Carry, Guidance, Steps
from distrijax.errors import DistrijaxError
from distrijax.models.text_encoder import TextEncoder
from distrijax.models.unet import Conditioning, UNet
from distrijax.models.vae import VAE
from distrijax.nn.embeddings import guidance_embedding
from distrijax.noise import GENERATORS
from distrijax.parallel.cluster import is_first, same_everywhere
from distrijax.parallel.mesh import Parallel, fetch, replicate
from distrijax.parallel.rows import Rows
from distrijax.parallel.tensor import spread_weights
from distrijax.tools.traffic import Traffic
from distrijax.tools.traffic import count_traffic as traffic_of
from distrijax.pipelines import programs
from distrijax.pipelines.initial import initial_latents, schedule_of
from distrijax.pipelines.prompt import (
    PromptEmbeds,
    added_time_ids,
    check_time_ids,
    encode_ids,
    encode_prompt,
    refiner_time_ids,
)
from distrijax.pipelines.tokenizer import Tokenizer
from distrijax.schedulers import Scheduler, scheduler_from_config

StepCallback = Callable[["StableDiffusionXLPipeline", int, float, dict[str, Any]], dict[str, Any] | None]


@dataclasses.dataclass(frozen=True)
class StableDiffusionXLPipelineOutput:
    """Attributes:

    images: PIL images; or an array, [B, H, W, 3] in [0, 1] for `output_type="np"`, [B, C, h, w] for "latent".
    seed: what makes the same pictures again.
    """

    images: Any
    seed: int | Sequence[int]


class StableDiffusionXLPipeline:
    """Text to picture with a checkpoint of the SDXL family: base or refiner U-Net, one or two text encoders.

    Most callers want `from_pretrained`. The parts are attributes and may be replaced; a new scheduler is
    `pipe.scheduler = scheduler_from_config(pipe.scheduler.to_config(), "ddim")`.

    Args:
        unet, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, scheduler: the parts; the refiner has no
            `text_encoder` and no `tokenizer`.
        force_zeros_for_empty_prompt: without a negative prompt, guide away from zero embeddings instead of from "".
        requires_aesthetics_score: the U-Net is told an aesthetic score in place of the target size, as the refiner's.
        parallel: the devices that make the pictures, and how; by default one.
        profile_guided: measure, on GPUs, what the kernels of the denoising loop cost, for programs of which that is not
            known: one call is traced, and from the next process on the transfers are placed by what it took.
    """

    def __init__(
        self,
        *,
        unet: UNet,
        vae: VAE,
        text_encoder: TextEncoder | None,
        text_encoder_2: TextEncoder | None,
        tokenizer: Tokenizer | None,
        tokenizer_2: Tokenizer | None,
        scheduler: Scheduler,
        force_zeros_for_empty_prompt: bool = True,
        requires_aesthetics_score: bool = False,
        parallel: Parallel | None = None,
        profile_guided: bool = False,
    ):
        self.unet, self.vae, self.scheduler = unet, vae, scheduler
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2
        self.tokenizer, self.tokenizer_2 = tokenizer, tokenizer_2
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        self.requires_aesthetics_score = requires_aesthetics_score
        self.interrupt = False  # a step callback may set it: the remaining steps are left out
        self.seconds = dict.fromkeys(("compiling", "encoding", "denoising", "decoding"), 0.0)  # of all calls so far
        self.set_progress_bar_config()

        keep_compiled_programs()
        self.parallel = parallel or Parallel()
        profiles = kept_profiles(measure=profile_guided)
        self._encode = Program("text encoding", encode_ids, static=["clip_skip"], report=self._report)
        self._condition = Program("conditioning", programs.condition, static=["parallel"], report=self._report)
        self._synchronous = programs.denoising("denoising, synchronous steps", self._report, profiles)
        self._displaced = programs.denoising("denoising, displaced steps", self._report, profiles)
        self._crop = Program("end of denoising", programs.crop, static=["parallel", "height"], report=self._report)
        self._decode = Program("decoding", programs.decode, static=["parallel", "height"], report=self._report)
        self._programs = self._encode, self._condition, self._synchronous, self._displaced, self._crop, self._decode

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        parallel: Parallel | None = None,
        profile_guided: bool = False,
        **options: Any,
    ) -> Self:
        """The pipeline of a checkpoint.

        Args:
            source: a converted checkpoint, a diffusers folder, an original `.safetensors` file, or a hub id.
            parallel: the devices that make the pictures, and how; by default one.
            profile_guided: measure on GPUs what kernels cost, for later processes; see the class.
            options: of `distrijax.checkpoint.load.load`: `dtype`, `variant`, `vae`, `tokenizer`, ... The default dtype
                is the checkpoint's own; on a CPU it is float32, since XLA has no float16 attention there.

        Raises:
            DistrijaxError: the source cannot be found or read, or is not an SDXL checkpoint.
        """
        if jax.default_backend() == "cpu" and options.get("dtype") is None:
            options["dtype"] = jnp.float32
        parallel = parallel or Parallel()
        options["progress"] = options.get("progress", True) and is_first()
        parts = load(source, sharding=parallel.replicated, **options)
        return cls(
            unet=parts.unet,
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            text_encoder_2=parts.text_encoder_2,
            tokenizer=None if parts.tokenizer is None else Tokenizer(parts.tokenizer, "tokenizer"),
            tokenizer_2=Tokenizer(parts.tokenizer_2, "tokenizer_2"),
            scheduler=scheduler_from_config(parts.scheduler),
            force_zeros_for_empty_prompt=parts.index.get("force_zeros_for_empty_prompt", True),
            requires_aesthetics_score=parts.index.get("requires_aesthetics_score", False),
            parallel=parallel,
            profile_guided=profile_guided,
        )

    def set_progress_bar_config(self, **config: Any) -> None:
        """Arguments of the `tqdm` progress bar; `disable=True` also silences what is said of compiling.

        Of several processes, only the first shows anything.
        """
        self._progress: dict[str, Any] = config if is_first() else config | {"disable": True}

    def _report(self, message: str) -> None:
        if not self._progress.get("disable"):
            tqdm.write(message, file=self._progress.get("file", sys.stderr))

    @property
    def dtype(self) -> Any:
        """Of the U-Net's weights and arithmetic. Latents are fp32 between the steps, whatever it is."""
        return self.unet.dtype

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        seed: int | Sequence[int] | None = None,
        latents: ArrayLike | None = None,
        prompt_embeds: ArrayLike | None = None,
        negative_prompt_embeds: ArrayLike | None = None,
        pooled_prompt_embeds: ArrayLike | None = None,
        negative_pooled_prompt_embeds: ArrayLike | None = None,
        output_type: str = "pil",
        guidance_rescale: float = 0.0,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        *,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        noise: str = "torch",
    ) -> StableDiffusionXLPipelineOutput:
        """Make pictures: `num_images_per_prompt` of each prompt, those of one prompt side by side.

        Args:
            prompt: what to draw; a list makes a batch.
            prompt_2: for the second text encoder; by default `prompt`.
            height, width: of the pictures, in pixels: multiples of 8. By default what the U-Net was trained on.
            num_inference_steps: denoising steps.
            timesteps, sigmas: the steps to take, in place of `num_inference_steps`, where the scheduler takes them.
            denoising_end: between 0 and 1: stop after that part of the noise schedule (for a refiner to go on).
            guidance_scale: classifier-free guidance; at 1 or below there is none, and each step costs half as much.
            negative_prompt, negative_prompt_2: what to guide away from.
            eta: noise of DDIM and TCD, 0 to 1; other schedulers ignore it.
            seed: whole number; the pictures are those of diffusers with `torch.Generator("cpu").manual_seed(seed)`. A
                list gives each picture its own. By default a new one, found in the output.
            latents: unit-variance noise [B, C, height / 8, width / 8] in place of that of the seed.
            prompt_embeds, negative_prompt_embeds: [B, T, D], pooled_...: [B, P], in place of the prompts.
            output_type: "pil", "np" or "latent".
            guidance_rescale: 0 to 1, against the over-exposure of strong guidance (arXiv 2305.08891).
            original_size, crops_coords_top_left, target_size, negative_...: SDXL's micro-conditioning, (height, width)
                or (top, left) in pixels (arXiv 2307.01952, section 2.2).
            clip_skip: layers of the text encoders to leave out, counted from the usual last but one.
            callback_on_step_end: called as `callback(pipe, step, timestep, {"latents": [B, C, h, w]})` after every
                step; it may return a dictionary with new latents, or set `pipe.interrupt`. The steps are then
                dispatched one by one, each waiting for the host.
            aesthetic_score, negative_aesthetic_score: for a U-Net that is told one (the refiner).
            noise: whose random numbers a seed stands for: "torch", as torch draws them on the CPU, or "jax".

        Raises:
            DistrijaxError: arguments that cannot be used, before anything is compiled.
        """
        height, width = self._size("height", height), self._size("width", width)
        if output_type not in ("pil", "np", "latent"):
            raise DistrijaxError(f"output_type is {output_type!r}; it must be 'pil', 'np' or 'latent'")
        if self.dtype == jnp.float16 and jax.default_backend() == "cpu":
            raise DistrijaxError("float16 cannot be computed on a CPU; load with dtype float32 or bfloat16")
        if noise not in GENERATORS:
            raise DistrijaxError(f"noise is {noise!r}; it must be 'torch' or 'jax'")
        for name, value in (("guidance_scale", guidance_scale), ("guidance_rescale", guidance_rescale)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise DistrijaxError(f"{name} is {value!r}; it must be a finite number")
        if denoising_end is not None and not (isinstance(denoising_end, float) and 0 < denoising_end < 1):
            raise DistrijaxError(f"denoising_end is {denoising_end!r}; it must lie between 0 and 1, without the ends")
        schedule = schedule_of(self.scheduler, num_inference_steps, timesteps, sigmas, denoising_end, eta)
        guided = guidance_scale > 1 and not self._distilled
        rows = self.parallel.rows(height // self.vae.config.factor, self.unet.config.factor)
        asked = prompt if prompt_embeds is None else prompt_embeds
        self._check_devices(guidance_scale, guided, asked, num_images_per_prompt)
        self._settle()
        with self._timed("encoding"):
            text = encode_prompt(
                [t for t in (self.tokenizer, self.tokenizer_2) if t is not None],
                [e for e in (self.text_encoder, self.text_encoder_2) if e is not None],
                prompt,
                prompt_2,
                negative_prompt=negative_prompt,
                negative_prompt_2=negative_prompt_2,
                num_images_per_prompt=num_images_per_prompt,
                guided=guided,
                clip_skip=clip_skip,
                force_zeros_for_empty_prompt=self.force_zeros_for_empty_prompt,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                pooled_prompt_embeds=pooled_prompt_embeds,
                negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
                encode=lambda *args, **choices: fetch(self._encode(*args, **choices)),
            )
        batch = len(text[0].context)
        sizes: dict[str, Any] = {
            "original_size": original_size or (height, width),
            "crops_coords_top_left": crops_coords_top_left,
            "negative_original_size": negative_original_size,
            "negative_crops_coords_top_left": negative_crops_coords_top_left,
        }
        if self.requires_aesthetics_score:
            sizes |= {"aesthetic_score": aesthetic_score, "negative_aesthetic_score": negative_aesthetic_score}
            time_ids = refiner_time_ids(batch=batch, **sizes)
        else:
            sizes |= {"target_size": target_size or (height, width), "negative_target_size": negative_target_size}
            time_ids = added_time_ids(batch=batch, **sizes)
        self._check_fit(text[0], time_ids[0])

        seed = same_everywhere(secrets.randbits(32)) if seed is None else seed
        shape = batch, self.unet.config.in_channels, *(size // self.vae.config.factor for size in (height, width))
        start, drawn = initial_latents(noise, seed, shape, schedule, latents)
        cond = self._conditioning(text, time_ids, guidance_scale)
        steps = Steps(schedule.rows, schedule.timesteps, None if drawn is None else rows.pad(drawn, 2))
        guidance = self._guidance(guidance_scale if guided else None, guidance_rescale if guided else 0.0)
        with self._timed("denoising"):
            final = self._run(rows.pad(start, 1), steps, cond, guidance, rows, callback_on_step_end)
        with self._timed("decoding"):
            images = self._output(final, height, output_type)
        return StableDiffusionXLPipelineOutput(images, seed)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Add what this takes to `seconds`; what it takes of it to compile has a place of its own."""
        start, compiled = time.perf_counter(), sum(program.compile_seconds for program in self._programs)
        yield
        self.seconds["compiling"] = sum(program.compile_seconds for program in self._programs)
        self.seconds[part] += time.perf_counter() - start - (self.seconds["compiling"] - compiled)

    def traffic(
        self, height: int | None = None, width: int | None = None, guidance_scale: float = 5.0, pictures: int = 1
    ) -> Traffic:
        """What each device sends and receives in a step of such a call, and carries to the next: print it.

        Nothing is computed, but the U-Net is traced: some seconds for SDXL.

        Args:
            height, width, guidance_scale: as of a call.
            pictures: of the whole batch.
        """
        guided = guidance_scale > 1 and not self._distilled
        sizes = {"height": self._size("height", height), "width": self._size("width", width)}
        return traffic_of(
            self.unet.config,
            self.parallel,
            self.dtype,
            **{name: size // self.vae.config.factor for name, size in sizes.items()},
            guided=guided,
            pictures=pictures,
            scheduler=self.scheduler,
        )

    def _settle(self) -> None:
        """Parts that the caller has replaced go where the others are; the others stay."""
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            place = spread_weights if name == "unet" and self.parallel.mode == "tensor" else replicate
            setattr(self, name, place(getattr(self, name), self.parallel))

    def _check_devices(self, scale: float, guided: bool, prompts: Any, images: Any) -> None:
        if isinstance(images, bool) or not isinstance(images, int | np.integer) or images < 1:
            raise DistrijaxError(f"num_images_per_prompt is {images!r}; it must be a whole number above zero")
        pictures = (1 if isinstance(prompts, str) or prompts is None else len(prompts)) * int(images)
        because = "this model takes it as an input" if self._distilled else f"guidance_scale is {scale}"
        self.parallel.check(pictures=pictures, guided=guided, because=because)

    @property
    def _distilled(self) -> bool:
        """Guidance is an input of the U-Net (LCM), not a combination of two of its outputs."""
        return self.unet.config.time_cond_proj_dim is not None

    def _check_fit(self, text: PromptEmbeds, time_ids: np.ndarray) -> None:
        config = self.unet.config
        if text.context.shape[-1] != config.cross_attention_dim:
            raise DistrijaxError(
                f"the prompt's embeddings are {text.context.shape[-1]} wide, the U-Net takes "
                f"{config.cross_attention_dim}; they are not of this model's text encoders"
            )
        check_time_ids(
            time_ids.shape[-1],
            text.pooled.shape[-1],
            config.addition_time_embed_dim,
            config.projection_class_embeddings_input_dim,
        )

    def _conditioning(
        self,
        text: tuple[PromptEmbeds, PromptEmbeds | None],
        time_ids: tuple[np.ndarray, np.ndarray],
        guidance_scale: float,
    ) -> Conditioning:
        """Of the prompts; where guidance is on, of the negative ones before them. Both arguments: prompt, negative."""
        pairs = [(t, i) for t, i in zip(text, time_ids, strict=True) if t is not None][::-1]
        context, pooled = (np.stack([getattr(t, name) for t, _ in pairs]) for name in ("context", "pooled"))
        ids = np.stack([i for _, i in pairs])  # [branches, B, 6]
        scale = None
        if self._distilled:
            embedding = guidance_embedding(jnp.float32([guidance_scale]), self.unet.config.time_cond_proj_dim or 0)
            scale = np.broadcast_to(embedding, (*ids.shape[:2], embedding.shape[-1]))
        inputs = self.parallel.place((context, pooled, ids, scale), programs.TEXT)
        return self._condition(self.unet, *inputs, parallel=self.parallel.compiled)

    def _guidance(self, scale: float | None, rescale: float) -> Guidance:
        weights, prompted = ([1.0], [1.0]) if scale is None else ([1 - scale, scale], [0.0, 1.0])
        guidance = Guidance(
            np.asarray(weights, np.float32),
            np.asarray(prompted, np.float32),
            np.float32(rescale) if rescale > 0 else None,
        )
        return self.parallel.place(guidance, programs.GUIDANCE)

    def _size(self, name: str, value: int | None) -> int:
        factor = self.vae.config.factor
        if value is None:
            return self.unet.config.sample_size * factor
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < factor or value % factor:
            below = max(factor, int(value) // factor * factor) if isinstance(value, int | float) else factor
            near = f"{below} or {below + factor}"
            raise DistrijaxError(f"{name} is {value!r}; it must be a whole multiple of {factor} pixels, such as {near}")
        return int(value)

    def _run(
        self,
        latents: Array,
        steps: Steps,
        cond: Conditioning,
        guidance: Guidance,
        rows: Rows,
        callback: StepCallback | None,
    ) -> Array:
        """All steps, the synchronous ones first: latents [B, >= h, W, C], the rows past the picture's being padding.

        Equal segments of a compiled scan are dispatched ahead of the devices while the bar follows them. A segment's
        scan runs without the host, and the next is queued before the last has ended, so the devices never wait; the
        host waits for the end of a segment only to move the bar.
        """
        total = len(steps.timesteps)
        first = Carry(latents, self.scheduler.init_state(jnp.asarray(latents)))
        carry = self.parallel.place(first, programs.CARRY)
        ends: deque[tuple[Array, int]] = deque()
        self.interrupt = False
        with tqdm(total=total, **{"desc": "denoising", "unit": "step"} | self._progress) as bar:
            for part, displaced in self._segments(total, one_by_one=callback is not None):
                now = self.parallel.place(steps[part], programs.STEPS)
                program = self._displaced if displaced else self._synchronous
                carry = carry if displaced else dataclasses.replace(carry, pieces=None)
                choices = {"rows": rows, "scheduler": self.scheduler, "displaced": displaced}
                carry, end = program(self.unet, carry, now, cond, guidance, parallel=self.parallel.compiled, **choices)
                ends.append((end, part.stop - part.start))
                if callback is not None:
                    carry = self._call_back(callback, part.start, steps.timesteps[part.start], carry, rows)
                while len(ends) > (0 if part.stop == total or self.interrupt else 2):
                    end, length = ends.popleft()
                    end.block_until_ready()
                    bar.update(length)
                if self.interrupt:
                    break
        return carry.latents

    def _segments(self, total: int, *, one_by_one: bool) -> Iterator[tuple[slice, bool]]:
        """The steps of each dispatch, and whether they are displaced."""
        synchronous = self.parallel.synchronous_steps(total)
        if self.parallel.displaces and synchronous == total and is_first():
            warnings.warn(
                f"all {total} steps are synchronous: the first and warmup_steps={self.parallel.warmup_steps} more are; "
                f"with a lower warmup_steps, transfers hide behind the arithmetic in the others",
                stacklevel=4,
            )
        for first, last, displaced in ((0, synchronous, False), (synchronous, total, True)):
            length = 1 if one_by_one else segment_length(last - first)
            for start in range(first, last, length):
                yield slice(start, start + length), displaced

    def _call_back(self, callback: StepCallback, step: int, timestep: Any, carry: Carry, rows: Rows) -> Carry:
        latents = self._crop(carry.latents, parallel=self.parallel.compiled, height=rows.total)
        returned = callback(self, step, timestep, {"latents": latents.transpose(0, 3, 1, 2)}) or {}
        if not isinstance(returned, Mapping):
            raise DistrijaxError(f"callback_on_step_end returned {returned!r}; it may return a dictionary or nothing")
        unknown = sorted(set(returned) - {"latents"})
        if unknown:
            raise DistrijaxError(f"callback_on_step_end returned {', '.join(unknown)}; it may return only latents")
        if "latents" in returned:
            latents = np.asarray(returned["latents"], np.float32).transpose(0, 2, 3, 1)
            carry = dataclasses.replace(carry, latents=self.parallel.place(rows.pad(latents, 1), programs.LATENTS))
        return carry

    def _output(self, latents: Array, height: int, output_type: str) -> Any:
        height //= self.vae.config.factor
        if output_type == "latent":
            return self._crop(latents, parallel=self.parallel.compiled, height=height).transpose(0, 3, 1, 2)
        each = len(latents) // self.parallel.data
        decoding = self.parallel.without_branches
        pictures = [
            fetch(self._decode(self.vae, latents, np.int32(i), parallel=decoding, height=height)) for i in range(each)
        ]
        images = np.stack(pictures, 1)  # [data, B / data, H, W, 3]
        images = images.reshape(-1, *images.shape[2:])
        if output_type == "np":
            return images
        return [Image.fromarray(image) for image in np.rint(images * 255).astype(np.uint8)]


def segment_length(steps: int, segments: int = 8) -> int:
    """Steps of one dispatch: a divisor of `steps`, so that one program serves all of them, for `segments` or more."""
    return next(k for k in range(max(1, steps // segments), 0, -1) if steps % k == 0)

"""What every pipeline of the SDXL family has: its parts, loading and saving them, and the stages that all share."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from distrijax.checkpoint import Parts, load, load_single_file, save_diffusers
from distrijax.checkpoint.load import DTypes, SourceOptions
from distrijax.checks import finite_number, one_of, whole_number
from distrijax.errors import DistrijaxError, UnsupportedError
from distrijax.models.text_encoder import TextEncoder
from distrijax.models.unet import UNet
from distrijax.models.vae import VAE
from distrijax.nn.embeddings import guidance_embedding
from distrijax.nn.module import Weights
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.options import Parallel
from distrijax.parallel.placement import replicate
from distrijax.parallel.policies import TENSOR
from distrijax.parallel.tensor import spread_weights
from distrijax.pipelines.loop import CALLBACK_INPUTS, Callback, run_loop
from distrijax.pipelines.output import OUTPUT_TYPES, Seed, StableDiffusionXLPipelineOutput, to_pil
from distrijax.pipelines.programs import Programs
from distrijax.pipelines.unsupported import ADVICE
from distrijax.runtime.processes import is_first
from distrijax.sampling.guidance import Guidance
from distrijax.sampling.inputs import TextInputs, loop_inputs
from distrijax.schedulers import Schedule, Scheduler
from distrijax.text.prompt import PromptEmbeds, PromptInputs, encode_prompt
from distrijax.text.time_ids import check_time_ids
from distrijax.text.tokenizer import Tokenizer


class SDXLPipeline:
    """A checkpoint of the SDXL family on its devices: base or refiner U-Net, one or two text encoders.

    Most callers want `from_pretrained`. The parts are attributes and may be replaced, as in
    `pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`.

    Attributes:
        interrupt: a step callback may set it to true to leave out the remaining steps.

    Args:
        unet, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, scheduler: the parts. A refiner has neither
            `text_encoder` nor `tokenizer`.
        force_zeros_for_empty_prompt: without a negative prompt, guide away from zero embeddings instead of from "".
        requires_aesthetics_score: the U-Net takes an aesthetic score in place of the target size, as the refiner's.
        parallel: the devices that make the pictures, and how; by default one.
        programs: those of another pipeline, to share its compiled programs.
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
        programs: Programs | None = None,
    ):
        self.unet, self.vae, self.scheduler = unet, vae, scheduler
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2
        self.tokenizer, self.tokenizer_2 = tokenizer, tokenizer_2
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        self.requires_aesthetics_score = requires_aesthetics_score
        self.parallel = parallel or Parallel()
        self.interrupt = False
        self.set_progress_bar_config()
        self.programs = programs or Programs(self._report)

    # ---------------------------------------------------------------------------------------------- loading and saving

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: DTypes | None = None,
        parallel: Parallel | None = None,
        progress: bool = True,
        **options: Unpack[SourceOptions],
    ) -> Self:
        """Load the pipeline of a checkpoint.

        Args:
            source: a converted checkpoint, a diffusers folder, an original `.safetensors` file, or a hub id.
            dtype: of weights and arithmetic. The default is the checkpoint's own; on a CPU it is float32, since XLA
                has no float16 attention there.
            parallel: the devices that make the pictures, and how; by default one.
            progress: show a bar.
            options: `variant`, `config` and `tokenizer`; and `unet`, `vae`, `text_encoder`, `text_encoder_2` and
                `scheduler`, objects or paths that take the place of the checkpoint's own parts.

        Raises:
            DistrijaxError: the source cannot be found or read, or is not an SDXL checkpoint.
        """
        return cls._from(load, source, dtype, parallel, progress, options)

    @classmethod
    def from_single_file(
        cls,
        file: str | Path,
        *,
        dtype: DTypes | None = None,
        parallel: Parallel | None = None,
        progress: bool = True,
        **options: Unpack[SourceOptions],
    ) -> Self:
        """Load the pipeline of an original `.safetensors` file; arguments as in `from_pretrained`."""
        return cls._from(load_single_file, file, dtype, parallel, progress, options)

    @classmethod
    def _from(
        cls,
        loader: Callable[..., Parts],
        source: str | Path,
        dtype: DTypes | None,
        parallel: Parallel | None,
        progress: bool,
        options: SourceOptions,
    ) -> Self:
        if jax.default_backend() == "cpu" and dtype is None:
            dtype = jnp.float32
        parallel = parallel or Parallel()
        show = progress and is_first()
        parts = loader(source, dtype=dtype, sharding=parallel.replicated, progress=show, **options)
        return cls(
            unet=parts.unet,
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            text_encoder_2=parts.text_encoder_2,
            tokenizer=None if parts.tokenizer is None else Tokenizer(parts.tokenizer, "tokenizer"),
            tokenizer_2=Tokenizer(parts.tokenizer_2, "tokenizer_2"),
            scheduler=parts.scheduler,
            force_zeros_for_empty_prompt=bool(parts.index.get("force_zeros_for_empty_prompt", True)),
            requires_aesthetics_score=bool(parts.index.get("requires_aesthetics_score", False)),
            parallel=parallel,
        )

    @classmethod
    def from_pipe(cls, pipe: "SDXLPipeline", **replaced: Any) -> Self:
        """Make a pipeline of this class from another's parts, without loading them again.

        Args:
            replaced: arguments of the class that take the place of the other pipeline's, such as `scheduler`.
        """
        shared = pipe.components | {"parallel": pipe.parallel, "programs": pipe.programs}
        shared |= {name: getattr(pipe, name) for name in ("force_zeros_for_empty_prompt", "requires_aesthetics_score")}
        return cls(**shared | replaced)

    def save_pretrained(self, folder: str | Path, *, variant: str | None = None, overwrite: bool = False) -> Path:
        """Write the pipeline as a diffusers folder, which appears when it is complete and not before.

        Args:
            folder: must not exist, or must be a checkpoint if `overwrite` is true.
            variant: the ending of the weights' file names, such as "fp16".
            overwrite: replace a checkpoint.
        """
        if self.text_encoder_2 is None or self.tokenizer_2 is None:
            raise DistrijaxError("this pipeline has no text_encoder_2 or tokenizer_2, which every SDXL checkpoint has")
        flags = "force_zeros_for_empty_prompt", "requires_aesthetics_score"
        parts = Parts(
            unet=self.unet,
            vae=self.vae,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            tokenizer=None if self.tokenizer is None else self.tokenizer.files,
            tokenizer_2=self.tokenizer_2.files,
            scheduler=self.scheduler,
            index={name: getattr(self, name) for name in flags},
        )
        return save_diffusers(folder, parts, variant=variant, overwrite=overwrite)

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name: `Other(**pipe.components)` makes a pipeline that shares them."""
        names = "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"
        return {name: getattr(self, name) for name in names}

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the U-Net's weights and arithmetic. Latents are fp32 between the steps, whatever it is."""
        return jnp.dtype(self.unet.dtype)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of all calls so far, by stage: compiling, encoding, denoising and decoding."""
        return self.programs.seconds

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of a latent's side."""
        return self.vae.config.scale_factor

    def set_progress_bar_config(self, **config: Any) -> None:
        """Set arguments of the `tqdm` progress bar; `disable=True` also silences announcements of compiling.

        With several processes, only the first shows anything.
        """
        self._progress: dict[str, Any] = config if is_first() else config | {"disable": True}

    def _report(self, message: str) -> None:
        if not self._progress.get("disable"):
            tqdm.write(message, file=self._progress.get("file", sys.stderr))

    def __getattr__(self, name: str) -> Any:
        if name in ADVICE:
            raise UnsupportedError(f"{name}: {ADVICE[name]}")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # ---------------------------------------------------------------------------------------------------------- stages

    _callback_tensor_inputs: ClassVar = CALLBACK_INPUTS

    def _check_call(
        self,
        batch: int,
        guidance_scale: float,
        guidance_rescale: float,
        output_type: str,
        cross_attention_kwargs: object,
    ) -> bool:
        """Check what every call takes, before anything is compiled; return whether there are two guidance branches."""
        if output_type == "pt":
            raise DistrijaxError(
                "output_type is 'pt', but there is no torch here; use 'np' and "
                "torch.from_numpy(images).permute(0, 3, 1, 2)"
            )
        one_of("output_type", output_type, OUTPUT_TYPES)
        if cross_attention_kwargs:
            raise DistrijaxError(
                f"cross_attention_kwargs is {cross_attention_kwargs!r}; it scales LoRA adapters, which cannot be "
                "loaded yet: leave it out"
            )
        if self.dtype == jnp.float16 and jax.default_backend() == "cpu":
            raise DistrijaxError("float16 cannot be computed on a CPU; load with dtype float32 or bfloat16")
        finite_number("guidance_scale", guidance_scale)
        finite_number("guidance_rescale", guidance_rescale)
        channels, latent_channels = self.unet.config.in_channels, self.vae.config.latent_channels
        if channels != latent_channels:
            raise DistrijaxError(
                f"this U-Net takes {channels} channels where latents have {latent_channels}; models for inpainting or "
                "editing are not supported by this pipeline"
            )
        guided = guidance_scale > 1 and not self._distilled
        because = "this model takes it as an input" if self._distilled else f"guidance_scale is {guidance_scale}"
        self.parallel.check(pictures=batch, guided=guided, because=because)
        return guided

    @property
    def _distilled(self) -> bool:
        """Whether guidance is an input of the U-Net (LCM) instead of a combination of two of its outputs."""
        return self.unet.config.time_cond_proj_dim is not None

    def _layout(self, rows: int) -> SlabLayout:
        """Divide rows of latents among the devices."""
        return self.parallel.layout(rows, self.unet.config.row_multiple)

    def _place_parts(self) -> None:
        """Move parts that the caller has replaced to where the others are."""
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            place = spread_weights if name == "unet" and self.parallel.mode == TENSOR else replicate
            setattr(self, name, place(getattr(self, name), self.parallel))

    def _encode_prompt(self, prompts: PromptInputs, guided: bool) -> PromptEmbeds:
        with self.programs.timed("encoding"):
            text = encode_prompt(
                prompts,
                [tokenizer for tokenizer in (self.tokenizer, self.tokenizer_2) if tokenizer is not None],
                [encoder for encoder in (self.text_encoder, self.text_encoder_2) if encoder is not None],
                guided=guided,
                force_zeros_for_empty_prompt=self.force_zeros_for_empty_prompt,
                encode=self.programs.encode_prompt,
            )
        if text.context.shape[-1] != self.unet.config.cross_attention_dim:
            raise DistrijaxError(
                f"the prompt's embeddings are {text.context.shape[-1]} wide, but the U-Net takes "
                f"{self.unet.config.cross_attention_dim}; they are not of this model's text encoders"
            )
        return text

    def _text_inputs(self, text: PromptEmbeds, time_ids: np.ndarray, guidance_scale: float) -> TextInputs:
        """Return what the U-Net is conditioned on; `time_ids` are [2, B, …], of which one branch may not be needed."""
        config = self.unet.config
        check_time_ids(
            time_ids.shape[-1],
            text.pooled.shape[-1],
            config.addition_time_embed_dim,
            config.projection_class_embeddings_input_dim,
        )
        embedding = None
        if config.time_cond_proj_dim is not None:
            scale = jnp.full(text.pooled.shape[1], guidance_scale, jnp.float32)
            embedding = np.asarray(guidance_embedding(scale, config.time_cond_proj_dim))[None]  # [1, B, E]
        return TextInputs(text.context, text.pooled, time_ids[-len(text.context) :], embedding)

    def _denoise(
        self,
        text: TextInputs,
        latents: np.ndarray,
        noise: np.ndarray | None,
        schedule: Schedule,
        guidance: Guidance,
        callback: Callback | None,
    ) -> Array:
        """Take all steps of `schedule`: latents [B, h, W, C] in, [B, >= h, W, C] out, with rows of padding below."""
        layout = self._layout(latents.shape[1])
        with self.programs.timed("denoising"):
            inputs = loop_inputs(
                Weights.of(self.unet),
                text,
                latents,
                noise,
                guidance,
                schedule,
                scheduler=self.scheduler,
                parallel=self.parallel,
                layout=layout,
                condition=self.programs.condition,
            )
            return run_loop(self, inputs, text, schedule, layout, callback, self._progress)

    def _decode(self, latents: Array, height: int, output_type: str) -> Any:
        """Turn latents into what the caller wants; `height` is the rows of the picture's latents."""
        if output_type == "latent":
            whole = self.programs.crop(latents, parallel=self.parallel.program_key, height=height)
            return whole.transpose(0, 3, 1, 2)
        with self.programs.timed("decoding"):
            parallel = self.parallel.without_branches
            pictures = [
                np.asarray(self.programs.decode(self.vae, latents, jnp.int32(i), parallel=parallel, height=height))
                for i in range(len(latents) // self.parallel.data)
            ]
        images = np.stack(pictures, 1)  # [data, B / data, H, W, 3]
        images = images.reshape(-1, *images.shape[2:])
        return images if output_type == "np" else to_pil(images)

    def _output(self, images: Any, seed: Seed, return_dict: bool) -> Any:
        return StableDiffusionXLPipelineOutput(images, seed) if return_dict else (images,)


def picture_size(name: str, value: int | None, default: int, multiple: int) -> int:
    """Return a side of the picture in pixels, checked to be a multiple of the VAE's scale factor."""
    if value is None:
        return default
    size = whole_number(name, value)
    if size < multiple or size % multiple:
        below = max(multiple, size // multiple * multiple)
        raise DistrijaxError(
            f"{name} is {value}; it must be a multiple of {multiple} pixels, such as {below} or {below + multiple}"
        )
    return size

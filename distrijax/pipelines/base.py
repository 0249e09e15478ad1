"""The base of the pipelines of the SDXL family: their parts, and loading and saving them."""

import sys
from typing import Any, Self, get_type_hints

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from tqdm import tqdm

from distrijax.adapters.chosen import Adapters
from distrijax.checks import finite_number, instance_of, true_or_false
from distrijax.config.unet import inpainting_channels
from distrijax.errors import DistrijaxError, UnsupportedError
from distrijax.models.autoencoder_tiny import Autoencoder
from distrijax.models.text_encoder import TextEncoder
from distrijax.models.unet import UNet
from distrijax.nn.conv import order_kernels
from distrijax.parallel.auto.choose import Choice, choose
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.options import Parallel
from distrijax.pipelines.adapters import AdapterMethods
from distrijax.pipelines.cutoff import GuidanceState
from distrijax.pipelines.images import ImageInput
from distrijax.pipelines.inversion import TextualInversion
from distrijax.pipelines.loading import FLAGS, Loading
from distrijax.pipelines.output import StableDiffusionXLPipelineOutput
from distrijax.pipelines.programs import Programs
from distrijax.pipelines.stages import encode_texts
from distrijax.pipelines.unsupported import ADVICE, other_inputs
from distrijax.pipelines.weights import NETWORKS
from distrijax.pipelines.weights import Parts as Parts
from distrijax.runtime.compile import Prepared
from distrijax.runtime.processes import is_first
from distrijax.schedulers import Scheduler
from distrijax.text.prompt import Prompt, PromptInputs
from distrijax.text.tokenizer import Tokenizer


class SDXLPipeline(Loading, AdapterMethods, TextualInversion, GuidanceState):
    """A checkpoint of the SDXL family on its devices: base or refiner U-Net, one or two text encoders.

    Most callers want `from_pretrained`. The parts are attributes and may be replaced, as in
    `pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`.

    Args:
        unet, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, scheduler: the parts. A refiner has neither
            `text_encoder` nor `tokenizer`.
        force_zeros_for_empty_prompt: without a negative prompt, guide away from zero embeddings instead of from "".
        requires_aesthetics_score: the U-Net takes an aesthetic score in place of the target size, like the refiner's.
        preview: a small autoencoder for previews, which callbacks see; the VAE makes them if there is none.
        parallel: the devices and how they share pictures; by default one device.
        programs: another pipeline's programs, to share what is compiled.
        adapters: another pipeline's adapters, to share what is loaded and active.
    """

    takes_mask = False
    """Whether a U-Net may have inputs for a mask and a masked picture, too."""

    def __init__(
        self,
        *,
        unet: UNet,
        vae: Autoencoder,
        text_encoder: TextEncoder | None,
        text_encoder_2: TextEncoder | None,
        tokenizer: Tokenizer | None,
        tokenizer_2: Tokenizer | None,
        scheduler: Scheduler,
        force_zeros_for_empty_prompt: bool = True,
        requires_aesthetics_score: bool = False,
        preview: Autoencoder | None = None,
        parallel: Parallel | None = None,
        programs: Programs | None = None,
        adapters: Adapters | None = None,
    ):
        self.source: str | None = None
        self.unet, self.vae, self.scheduler, self.preview = unet, vae, scheduler, preview
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2
        self.tokenizer, self.tokenizer_2 = tokenizer, tokenizer_2
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        self.requires_aesthetics_score = requires_aesthetics_score
        self.parallel = Parallel() if parallel is None else parallel
        for part in (unet, vae, preview):
            if part is not None:
                order_kernels(part, self.parallel.kernel_order)
        self._collected = {}
        self.only_compiles = False
        self.set_progress_bar_config()
        self.check_channels()
        self.programs = programs or Programs(self._report)
        self.adapters = adapters or Adapters()

    def __setattr__(self, name: str, value: Any) -> None:
        """Check a part when it is set: one of another kind would fail in the middle of a call."""
        kind = _KINDS.get(name, object)
        if not isinstance(value, kind) or (value is None and name == "parallel"):
            cure = ", such as DDIMScheduler.from_config(pipe.scheduler.config)" if kind is Scheduler else ""
            raise DistrijaxError(f"{name} is {value!r}; it must be a {getattr(kind, '__name__', kind)}{cure}")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        model, device = self.source or "parts in memory", self.parallel.mesh.devices.flat[0].device_kind
        name = type(self).__name__
        return f"<{name} of {model}, {self.dtype.name}, {self.parallel} on {device}, {self.scheduler.class_name}>"

    @classmethod
    def from_pipe(cls, pipe: "SDXLPipeline", **replaced: Any) -> Self:
        """Return a pipeline of this class with another's parts, except those `replaced`, such as `scheduler`."""
        instance_of("pipe", pipe, SDXLPipeline, "a pipeline of distrijax")
        shared = pipe.components | {name: getattr(pipe, name) for name in ("parallel", "programs", "adapters")}
        shared |= {name: getattr(pipe, name) for name in FLAGS}
        other = cls(**shared | replaced)
        other.source = pipe.source
        return other

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name: `Other(**pipe.components)` makes a pipeline that shares them."""
        names = *NETWORKS, "preview", "tokenizer", "tokenizer_2", "scheduler"
        return {name: getattr(self, name) for name in names}

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the U-Net's weights and arithmetic. Latents are always fp32 between the steps."""
        return jnp.dtype(self.unet.dtype)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of all calls so far, by stage: compiling, encoding, denoising and decoding."""
        return self.programs.seconds

    @property
    def vae_scale_factor(self) -> int:
        """Side length of one latent in pixels."""
        return self.vae.config.scale_factor

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile all that a call with these arguments would run, without making a picture, and wait for it.

        Args:
            arguments, options: of a call. The prompt may be absent, and no values matter but those that say how large a
                batch is, of which size, how many chunks its prompts have, and what its steps need: as any that are
                compiled, they serve all others.
        """
        for program in self._begin_compiling(*arguments, **options):
            program.wait()

    def _begin_compiling(self, *arguments: Any, **options: Any) -> list[Prepared]:
        self.only_compiles = True
        try:
            return self(*(arguments or (() if "prompt" in options else ("",))), **options)  # type: ignore[operator]  # of the pipelines
        finally:
            self.only_compiles = False

    def upscale(self, image: ImageInput, factor: float = 2.0, **call: Any) -> StableDiffusionXLPipelineOutput:
        """Enlarge pictures, and take the last part of the steps at the large size to draw what they lack.

        At sizes beyond those of its training, a model repeats its subject; pictures that were made small and enlarged
        have it once.

        Args:
            image: pictures, or their latents, as in `StableDiffusionXLImg2ImgPipeline`.
            factor: of both sides, from 1 to 8; they are rounded to multiples of the VAE's scale factor (8).
            call: arguments of that pipeline, such as `prompt` and `seed`, where `strength` is 0.35 by default; and
                `method`: "lanczos", which enlarges the pixels, or "latent", which enlarges the latents, is blurred, and
                needs a strength of 0.5 or more.
        """
        from distrijax.pipelines.upscale import upscale  # which is built on a pipeline

        return upscale(self, image, factor, **call)

    def set_progress_bar_config(self, **config: Any) -> None:
        """Set arguments of the `tqdm` progress bar; `disable=True` also silences messages about compiling."""
        # With several processes, only the first shows anything.
        self.progress_options: dict[str, Any] = config if is_first() else config | {"disable": True}

    def _report(self, message: str) -> None:
        if not self.progress_options.get("disable"):
            tqdm.write(message, file=self.progress_options.get("file", sys.stderr))

    def __getattr__(self, name: str) -> Any:
        if name in ADVICE:
            raise UnsupportedError(f"{name}: {ADVICE[name]}")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def encode_prompt(
        self,
        prompt: Prompt | None = None,
        prompt_2: Prompt | None = None,
        device: object = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: Prompt | None = None,
        negative_prompt_2: Prompt | None = None,
        prompt_embeds: ArrayLike | None = None,
        negative_prompt_embeds: ArrayLike | None = None,
        pooled_prompt_embeds: ArrayLike | None = None,
        negative_pooled_prompt_embeds: ArrayLike | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
        *,
        prompt_syntax: str = "plain",
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray | None]:
        """Return prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds and negative_pooled_prompt_embeds.

        They are arguments of a call, on the host, each prompt repeated `num_images_per_prompt` times: [B, T, D] with
        T = 77 tokens for each chunk of the prompt and D the widths of both text encoders together (768 + 1280), and the
        pooled ones [B, P] with P the width of the projection (1280).

        Args:
            device: ignored, since text encoders stay where they are.
            do_classifier_free_guidance: whether there are negative embeddings.
            lora_scale: what the weights of adapters in the text encoders are multiplied by.
            prompt_syntax: as in a call.
        """
        scale = 1.0 if lora_scale is None else finite_number("lora_scale", lora_scale)
        guided = true_or_false("do_classifier_free_guidance", do_classifier_free_guidance)
        texts = prompt, prompt_2, negative_prompt, negative_prompt_2, num_images_per_prompt, clip_skip
        embeds = prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds
        prompts = PromptInputs(*texts, *embeds, prompt_syntax)
        with self.programs.timed("encoding"):
            encode = self.programs.encode_prompt
            parts = self.place_parts(NETWORKS[2:], scale)
            context, pooled = encode_texts(self, prompts, parts, self.tokenizers, encode, guided=guided)
        return context[-1], context[0] if guided else None, pooled[-1], pooled[0] if guided else None

    @property
    def distilled(self) -> bool:
        """Whether guidance is an input of the U-Net (LCM) instead of a combination of two of its outputs."""
        return self.unet.config.time_cond_proj_dim is not None

    def check_channels(self) -> None:
        """Raise DistrijaxError unless the U-Net takes what this pipeline gives it."""
        latents, inputs = self.vae.config.latent_channels, self.unet.config.in_channels
        if inputs not in (latents, inpainting_channels(latents) if self.takes_mask else latents):
            raise DistrijaxError(other_inputs(inputs, latents))

    def layout(self, rows: int) -> SlabLayout:
        """Return the layout of rows of latents on the devices; raise DistrijaxError if there are too few."""
        return self.parallel.layout(rows, self.unet.config.row_multiple)

    def choose_mode(self, rows: int, columns: int, *, pictures: int, guided: bool) -> Choice:
        """Return the devices with the mode that a call takes, for latents of this size."""
        config, dtype = self.unet.config, self.dtype
        return choose(self.parallel, config, height=rows, width=columns, pictures=pictures, guided=guided, dtype=dtype)

    @property
    def tokenizers(self) -> list[Tokenizer]:
        """The tokenizers, of which a refiner has one."""
        return [tokenizer for tokenizer in (self.tokenizer, self.tokenizer_2) if tokenizer is not None]


_KINDS = get_type_hints(SDXLPipeline.__init__)

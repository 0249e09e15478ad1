"""The stages of a call: check the arguments, condition on the text, denoise, decode."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from distrijax.checks import finite_number, one_of, true_or_false
from distrijax.errors import DistrijaxError
from distrijax.models.unet import Conditioning
from distrijax.nn.embeddings import guidance_embedding
from distrijax.parallel.messages import Carried
from distrijax.parallel.options import Parallel
from distrijax.pipelines.adapters import check_lora_scale
from distrijax.pipelines.arguments import call_with
from distrijax.pipelines.callback import Callback, Held
from distrijax.pipelines.loop import run_loop, static_arguments
from distrijax.pipelines.maps import NO_MAPS, MapKinds, Start
from distrijax.pipelines.output import OUTPUT_TYPES, Seed
from distrijax.pipelines.randomness import Generators, make_generators, step_noise
from distrijax.pipelines.steps import call_schedule
from distrijax.runtime.agreement import check_same_everywhere
from distrijax.sampling.guidance import Guidance
from distrijax.sampling.inputs import Host, LoopInputs, TextInputs, loop_inputs
from distrijax.schedulers import Schedule
from distrijax.text.prompt import PromptEmbeds, PromptInputs, encode_prompt
from distrijax.text.time_ids import check_time_ids, time_ids

if TYPE_CHECKING:
    from distrijax.pipelines.base import Parts, SDXLPipeline


@dataclasses.dataclass(frozen=True)
class Call:
    """The checked arguments of a call.

    Attributes:
        shape: shape of the latents in diffusers' order, (B, C, h, w).
        time_ids: time ids of both guidance branches, [2, B, 6] or [2, B, 5].
        guided: whether there are two guidance branches.
        parallel: the devices, with the mode that the call takes.
        generators: one for the batch, or one for each picture.
        seed: the seed that recreates the generators.
        maps: what every step sees beside the latents.
        lora_scale: what the weights of adapters are multiplied by.
        then: the run of another pipeline that goes on with the latents.
        why: what mode `auto` chose and for which reason.
    """

    prompts: PromptInputs
    schedule: Schedule
    shape: tuple[int, int, int, int]
    time_ids: np.ndarray
    guided: bool
    parallel: Parallel
    guidance_scale: float
    guidance_rescale: float
    generators: Generators
    seed: Seed
    callback: Callback | None
    output_type: str
    return_dict: bool
    lora_scale: float
    maps: MapKinds = NO_MAPS
    then: "Then | None" = None
    why: str | None = None

    @property
    def previews(self) -> bool:
        """Whether the callback sees the clean latents that a step predicts, or pictures of them."""
        return self.callback is not None and self.callback.previews


@dataclasses.dataclass(frozen=True)
class Then:
    """A second run, which goes on with the latents of the first.

    Attributes:
        offload: whether the U-Net that is not running leaves the devices.
    """

    pipe: "SDXLPipeline"
    call: Call
    offload: bool


def check_call(
    pipe: "SDXLPipeline",
    given: Mapping[str, Any],
    rows: int,
    columns: int,
    *,
    image_to_image: bool = False,
    maps: MapKinds = NO_MAPS,
) -> Call:
    """Return the arguments that every call takes, checked.

    Args:
        given: the arguments of a call by name; see `call_with`.
        rows, columns: of the latents.
        image_to_image: whether the time ids follow the rules of image-to-image.
        maps: what every step sees beside the latents.
    """
    prompts = call_with(PromptInputs, given)
    schedule = call_with(call_schedule, given, scheduler=pipe.scheduler)
    _check_choices(given["output_type"], given["return_dict"])
    lora_scale = check_lora_scale(given["cross_attention_kwargs"])
    if pipe.dtype == jnp.float16 and jax.default_backend() == "cpu":
        raise DistrijaxError("float16 cannot be computed on a CPU; load with dtype float32 or bfloat16")
    guidance_scale = finite_number("guidance_scale", given["guidance_scale"])
    guidance_rescale = finite_number("guidance_rescale", given["guidance_rescale"], 0, 1)
    pipe.check_channels()
    guided = guidance_scale > 1 and not pipe.distilled
    because = "this model takes it as an input" if pipe.distilled else f"guidance_scale is {guidance_scale}"
    pipe.parallel.check(pictures=prompts.batch, guided=guided, because=because)
    pipe.layout(rows)
    choice = pipe.choose_mode(rows, columns, pictures=prompts.batch, guided=guided)
    ids = call_with(
        time_ids,
        given,
        batch=prompts.batch,
        size=(rows * pipe.vae_scale_factor, columns * pipe.vae_scale_factor),
        requires_aesthetics_score=pipe.requires_aesthetics_score,
        image_to_image=image_to_image,
    )
    generators, seed = call_with(make_generators, given, batch=prompts.batch, dtype=pipe.dtype)
    texts = prompts.prompt, prompts.prompt_2, prompts.negative_prompt, prompts.negative_prompt_2
    numbers = {"size": (rows, columns), "steps": len(schedule), "guidance_scale": guidance_scale, "seed": seed}
    numbers["mode"] = choice.parallel.mode
    tokens = [tokenizer.added for tokenizer in pipe.tokenizers]
    words = {"prompts": texts, "prompt_syntax": prompts.prompt_syntax, "textual inversions": tokens}
    check_same_everywhere(words | {"adapters": (pipe.adapters.signature, lora_scale)} | numbers)
    return Call(
        prompts=prompts,
        schedule=schedule,
        shape=(prompts.batch, pipe.vae.config.latent_channels, rows, columns),
        time_ids=ids,
        guided=guided,
        parallel=choice.parallel,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        generators=generators,
        seed=seed,
        callback=Callback.of(given["callback_on_step_end"], given["callback_on_step_end_tensor_inputs"], maps),
        output_type=given["output_type"],
        return_dict=given["return_dict"],
        lora_scale=lora_scale,
        maps=maps,
        why=choice.why,
    )


def _check_choices(output_type: object, return_dict: object) -> None:
    if isinstance(output_type, str) and output_type == "pt":
        raise DistrijaxError(
            "output_type is 'pt', but torch is not used here; use 'np' and torch.from_numpy(images).permute(0, 3, 1, 2)"
        )
    one_of("output_type", output_type, OUTPUT_TYPES)
    true_or_false("return_dict", return_dict)


def encode_texts(
    pipe: "SDXLPipeline",
    prompts: PromptInputs,
    parts: "Parts",
    tokenizers: Sequence[Any],
    encode: Callable[..., Any],
    *,
    guided: bool,
) -> PromptEmbeds:
    """Return the prompts, encoded by the program `encode`, with the negative branch if there is guidance."""
    encoders = tuple(parts[name] for name in ("text_encoder", "text_encoder_2") if name in parts)
    return encode_prompt(
        prompts,
        tokenizers,
        [encoder for encoder in (pipe.text_encoder, pipe.text_encoder_2) if encoder is not None],
        guided=guided,
        force_zeros_for_empty_prompt=pipe.force_zeros_for_empty_prompt,
        encode=lambda _, *arrays, clip_skip: encode(encoders, *arrays, clip_skip=clip_skip),
    )


def condition_on_text(
    pipe: "SDXLPipeline",
    call: Call,
    parts: "Parts",
    tokenizers: Sequence[Any],
    encode: Callable[..., Any],
) -> TextInputs:
    """Return the encoded prompts and the U-Net's other conditioning."""
    config = pipe.unet.config
    text = encode_texts(pipe, call.prompts, parts, tokenizers, encode, guided=call.guided)
    if text.context.shape[-1] != config.cross_attention_dim:
        raise DistrijaxError(
            f"prompt_embeds are {text.context.shape[-1]} wide; this U-Net takes {config.cross_attention_dim}, as "
            "its own text encoders make them"
        )
    check_time_ids(
        call.time_ids.shape[-1],
        text.pooled.shape[-1],
        config.addition_time_embed_dim,
        config.projection_class_embeddings_input_dim,
        given=call.prompts.pooled_prompt_embeds is not None,
    )
    embedding = None
    if config.time_cond_proj_dim is not None:
        scale = jnp.full(call.prompts.batch, call.guidance_scale, jnp.float32)
        embedding = np.asarray(guidance_embedding(scale, config.time_cond_proj_dim))[None]  # [1, B, E]
    return TextInputs(text.context, text.pooled, call.time_ids[-len(text.context) :], embedding)


def first_inputs(
    pipe: "SDXLPipeline",
    call: Call,
    parts: "Parts",
    text: TextInputs,
    latents: Host | Array,
    maps: Mapping[str, Host],
    noise: Host | None,
    condition: Callable[..., Conditioning],
    first_pieces: Callable[..., Carried],
) -> LoopInputs:
    """Return `loop_inputs` of a call, from arrays or shapes."""
    inputs = loop_inputs(
        parts["unet"],
        text,
        latents,
        noise,
        Guidance.of(call.guidance_scale if call.guided else None, call.guidance_rescale),
        call.schedule,
        scheduler=pipe.scheduler,
        parallel=call.parallel,
        layout=pipe.layout(call.shape[2]),
        condition=condition,
        maps=maps,
        previews=call.previews,
    )
    if call.parallel.policy.predicts:
        _, phase = call.parallel.phases(call.schedule.steps)[0]
        static = static_arguments(pipe, call)
        pieces = first_pieces(*inputs.with_steps(0, 1, call.parallel), **static, phase=phase)
        inputs = inputs._replace(carry=dataclasses.replace(inputs.carry, pieces=pieces))
    return inputs


def denoise(pipe: "SDXLPipeline", call: Call, parts: "Parts", text: TextInputs, start: Start) -> Array:
    """Take all steps; return latents [B, >= h, W, C], whose rows past the picture's are padding."""
    with pipe.programs.timed("denoising"):
        noise = step_noise(call.generators, call.shape, call.schedule, pipe.scheduler.noise_dtype)
        condition, pieces = pipe.programs.condition, pipe.programs.first_pieces
        inputs = first_inputs(pipe, call, parts, text, start.latents, start.maps, noise, condition, pieces)
        return run_loop(pipe, call, inputs, Held(text, start.maps, parts.get("preview", parts["vae"])))

"""A call from its checked arguments to the pictures: compile, then run one stage after the other."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

from distrijax.models.autoencoder_tiny import Autoencoder
from distrijax.nn.module import Weights
from distrijax.pipelines.ahead import begin_compiling
from distrijax.pipelines.decode import decode
from distrijax.pipelines.finite import check_finite
from distrijax.pipelines.maps import Start
from distrijax.pipelines.output import StableDiffusionXLPipelineOutput
from distrijax.pipelines.refine import hand_over, prepare_hand_over
from distrijax.pipelines.stages import Call, condition_on_text, denoise
from distrijax.runtime.agreement import check_same_everywhere
from distrijax.runtime.compile import Prepared

if TYPE_CHECKING:
    from distrijax.pipelines.base import Parts, SDXLPipeline


def make_pictures(
    pipe: "SDXLPipeline",
    call: Call,
    start: Callable[[Weights[Autoencoder]], Start],
    *,
    encodes: bool = False,
    finish: Callable[[Any], Any] = lambda images: images,
) -> Any:
    """Make pictures and return them as the caller requested.

    Args:
        start: returns what the run begins with, given the autoencoder's weights.
        encodes: whether `start` runs the autoencoder, which is then compiled with the others.
        finish: changes the finished images.
    """
    only_compiles, then = pipe.only_compiles, call.then
    if then is not None and then.offload and then.pipe.unet is not pipe.unet:
        then.pipe.offload()
    parts = _weights(pipe, call)
    begun = _begin(pipe, call, parts, anew=only_compiles, encodes=encodes)
    later = None
    if then is not None:
        later = then.pipe.shapes() if then.offload else _weights(then.pipe, then.call)
        begun += _begin(then.pipe, then.call, later, anew=only_compiles)
        begun.append(prepare_hand_over(pipe, call, then))
    if only_compiles:
        return begun
    begin = start(parts["vae"])
    finite = all(np.isfinite(x).all() for x in (begin.latents, *begin.maps.values()))
    check_finite(finite, "the initial latents are", "vae", pipe.vae.dtype)
    check_same_everywhere({"initial latents": begin.latents, "maps": begin.maps})
    final = _run(pipe, call, parts, begin, begun)
    if then is not None and not pipe.interrupted:
        del parts  # with `offload`, nothing else may hold the weights
        parts, final = hand_over(pipe, final, then, later)
        pipe, call = then.pipe, then.call
        final = _run(pipe, call, parts, Start(final), begun)
    images = finish(decode(pipe, call, parts["vae"], final))
    return StableDiffusionXLPipelineOutput(images, call.seed, call.parallel.mode) if call.return_dict else (images,)


def _weights(pipe: "SDXLPipeline", call: Call) -> "Parts":
    with pipe.programs.timed("merging"):
        return pipe.place_parts(lora_scale=call.lora_scale)


def _begin(pipe: "SDXLPipeline", call: Call, parts: "Parts", *, anew: bool, encodes: bool = False) -> list[Prepared]:
    """Begin to compile what a run needs, unless one of its kind has run before; `anew` even then."""
    phases, known = len(call.parallel.phases(call.schedule.steps)), pipe.programs.known
    chunks = call.prompts.chunks(pipe.tokenizers)
    needs = call.guided, call.output_type, call.previews, encodes, call.then is None
    maps = tuple(call.maps.channels), call.maps.after_step
    kind = call.shape, call.prompts.count, chunks, needs, maps, phases, pipe.scheduler, call.parallel
    if kind in known and not anew:  # looking for them takes 10 ms; what is missed compiles later
        return []
    if call.why is not None:
        pipe._report(call.why)
    if chunks > 1:
        pipe._report(f"the prompts are {chunks} chunks long, and each number of chunks has programs of its own")
    begun = begin_compiling(pipe, call, parts, encodes=encodes)
    known.add(kind)
    return begun


def _run(pipe: "SDXLPipeline", call: Call, parts: "Parts", start: Start, begun: list[Prepared]) -> Array:
    """Encode the prompt and take all steps."""
    with pipe.programs.timed("encoding"):
        text = condition_on_text(pipe, call, parts, pipe.tokenizers, pipe.programs.encode_prompt)
        finite = all(np.isfinite(np.asarray(x)).all() for x in (text.context, text.pooled))
        check_finite(finite, "the prompt's embeddings are", "text_encoder_2", text.context.dtype)
    for program in begun:  # before the progress bar starts
        program.wait()
    return denoise(pipe, call, parts, text, start)

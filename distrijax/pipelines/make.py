"""A call from its checked arguments to the pictures: compile, then run one stage after the other."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from distrijax.models.vae import VAE
from distrijax.nn.module import Weights
from distrijax.pipelines.ahead import begin_compiling
from distrijax.pipelines.finite import check_finite
from distrijax.pipelines.maps import Start
from distrijax.pipelines.output import StableDiffusionXLPipelineOutput
from distrijax.pipelines.stages import Call, condition_on_text, decode, denoise

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline


def make_pictures(
    pipe: "SDXLPipeline",
    call: Call,
    start: Callable[[Weights[VAE]], Start],
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
    with pipe.programs.timed("merging"):
        parts = pipe.place_parts(lora_scale=call.lora_scale)
    phases, known = len(pipe.parallel.phases(call.schedule.steps)), pipe.programs.known
    chunks = call.prompts.chunks(pipe.tokenizers)
    kind = (
        call.shape, call.prompts.count, call.guided, call.output_type, phases, encodes, pipe.scheduler, pipe.parallel,
        chunks, tuple(call.maps.channels), call.maps.after_step,
    )  # fmt: skip
    begun = []
    if kind not in known or pipe.only_compiles:  # looking for them takes 10 ms; what is missed compiles later
        if chunks > 1:
            pipe._report(f"the prompts are {chunks} chunks long, and each number of chunks has programs of its own")
        begun = begin_compiling(pipe, call, parts, encodes=encodes)
    if pipe.only_compiles:
        return begun
    begin = start(parts["vae"])
    finite = all(np.isfinite(x).all() for x in (begin.latents, *begin.maps.values()))
    check_finite(finite, "the initial latents are", "vae", pipe.vae.dtype)
    with pipe.programs.timed("encoding"):
        text = condition_on_text(pipe, call, parts, pipe.tokenizers, pipe.programs.encode_prompt)
        finite = all(np.isfinite(np.asarray(x)).all() for x in (text.context, text.pooled))
        check_finite(finite, "the prompt's embeddings are", "text_encoder_2", text.context.dtype)
    for program in begun:  # before the progress bar starts
        program.wait()
    known.add(kind)
    final = denoise(pipe, call, parts, text, begin)
    images = finish(decode(pipe, parts["vae"], final, call.shape[2], call.output_type))
    return StableDiffusionXLPipelineOutput(images, call.seed) if call.return_dict else (images,)

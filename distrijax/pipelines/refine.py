"""A second pipeline that takes the last steps of a call: SDXL's refiner, or any other model of the same latents."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array

from distrijax.checks import finite_number, true_or_false
from distrijax.errors import DistrijaxError
from distrijax.parallel.placement import place
from distrijax.parallel.policies import AUTO, TENSOR
from distrijax.pipelines.arguments import call_with
from distrijax.pipelines.stages import Call, Then, check_call
from distrijax.pipelines.steps import call_schedule
from distrijax.runtime.compile import Prepared
from distrijax.sampling.programs import LATENTS

if TYPE_CHECKING:
    from distrijax.pipelines.base import Parts, SDXLPipeline

_EMBEDS = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
_SHARED = "data", "cfg", "patch", "emulate", "devices"


def check_runs(pipe: "SDXLPipeline", given: Mapping[str, Any], rows: int, columns: int, **choices: Any) -> Call:
    """Return the checked arguments of a call, and in its `then` those of its refiner, if there is one.

    As two calls of diffusers do, the first run ends where the noise schedule reaches `switch_at`, and the second begins
    there with the latents, its own embeddings of the prompt and its own time ids, and no history.

    Args:
        given, rows, columns, choices: see `check_call`.
    """
    refiner, offload = given["refiner"], true_or_false("offload", given["offload"])
    switch_at = finite_number("switch_at", given["switch_at"], 0, 1)
    if switch_at in (0, 1):
        raise DistrijaxError(f"switch_at is {switch_at}; it must be a number between 0 and 1, both excluded")
    if refiner is None:
        return check_call(pipe, given, rows, columns, **choices)
    _check_refiner(pipe, refiner, given, offload=offload)
    later = {"denoising_start": switch_at, "strength": None, "latents": None}
    try:
        first = check_call(pipe, {**given, "denoising_end": switch_at}, rows, columns, **choices)
        second = check_call(refiner, {**given, **later}, rows, columns, image_to_image=True)
    except DistrijaxError as error:
        raise DistrijaxError(f"with a refiner and switch_at {switch_at!r}: {error}") from error
    if second.shape != first.shape or refiner.vae_scale_factor != pipe.vae_scale_factor:
        raise DistrijaxError(
            f"the refiner's latents are {second.shape} of {refiner.vae_scale_factor} pixels each way, this model's "
            f"{first.shape} of {pipe.vae_scale_factor}; both must be of the same family"
        )
    _warn_of_a_gap(pipe, given, first, second)
    # The noise of its steps goes on in the same stream: the same seed anew would repeat the initial noise.
    second = dataclasses.replace(second, generators=first.generators)
    if pipe.parallel.mode == refiner.parallel.mode == AUTO:  # a picture is made in one mode
        parallel = dataclasses.replace(second.parallel, mode=first.parallel.mode)
        second = dataclasses.replace(second, parallel=parallel, why=None)
    return dataclasses.replace(first, then=Then(refiner, second, offload))


def hand_over(pipe: "SDXLPipeline", latents: Array, then: Then, parts: "Parts | None" = None) -> "tuple[Parts, Array]":
    """Return the weights of the second run, and the latents dealt as its U-Net wants them, without the host.

    Args:
        parts: those weights, or their shapes if they are on the host.
    """
    if then.offload and then.pipe.unet is not pipe.unet:
        jax.block_until_ready(latents)  # until then, the steps read the weights
        pipe.offload()
    if then.offload or parts is None:
        parts = then.pipe.place_parts(lora_scale=then.call.lora_scale)
    layout = then.pipe.layout(then.call.shape[2])
    return parts, then.pipe.programs.deal(latents, parallel=then.call.parallel.program_key, layout=layout)


def prepare_hand_over(pipe: "SDXLPipeline", call: Call, then: Then) -> Prepared:
    """Begin to compile the program that deals the latents anew."""
    batch, channels, rows, columns = call.shape
    shape = jax.ShapeDtypeStruct((batch, pipe.layout(rows).padded_height, columns, channels), np.float32)
    placed = place(shape, LATENTS, pipe.parallel)
    layout = then.pipe.layout(rows)
    return then.pipe.programs.deal.prepare(placed, parallel=then.call.parallel.program_key, layout=layout)


def _check_refiner(pipe: "SDXLPipeline", refiner: object, given: Mapping[str, Any], *, offload: bool) -> None:
    from distrijax.pipelines.base import SDXLPipeline  # which imports the stages

    if not isinstance(refiner, SDXLPipeline):
        raise DistrijaxError(
            f"refiner is {refiner!r}; it must be a pipeline, such as StableDiffusionXLImg2ImgPipeline.from_pretrained("
            '"stabilityai/stable-diffusion-xl-refiner-1.0", parallel=pipe.parallel)'
        )
    differ = [name for name in _SHARED if getattr(pipe.parallel, name) != getattr(refiner.parallel, name)]
    if differ:
        raise DistrijaxError(
            f"the refiner is on other devices (parallel differs in {', '.join(differ)}); load it with "
            "parallel=pipe.parallel, or set refiner.parallel to that"
        )
    if texts := [name for name in _EMBEDS if given[name] is not None]:
        raise DistrijaxError(
            f"{texts[0]} is given, but a refiner reads the prompt with its own text encoder; give prompt instead, or "
            "make two calls, with denoising_end and denoising_start"
        )
    if offload and TENSOR in (pipe.parallel.mode, refiner.parallel.mode):
        raise DistrijaxError("offload moves whole weights, and mode 'tensor' has spread them; choose another mode")


def _warn_of_a_gap(pipe: "SDXLPipeline", given: Mapping[str, Any], first: Call, second: Call) -> None:
    """Warn if the second run begins at another noise level than the first one leaves the latents at."""
    whole = call_with(call_schedule, {**given, "denoising_end": None}, scheduler=pipe.scheduler)
    left = len(first.schedule)
    levels = [
        float(schedule.noise_level[step] / schedule.signal[step])
        for schedule, step in ((whole, left), (second.schedule, 0))
    ]
    if not math.isclose(levels[0], levels[1], rel_tol=0.01):
        warnings.warn(
            f"this model's scheduler leaves the noise at {levels[0]:.3g} of the signal, and the refiner's goes on from "
            f"{levels[1]:.3g}; give both the same one: "
            "refiner.scheduler = refiner.scheduler.from_config(pipe.scheduler.config)",
            stacklevel=4,
        )

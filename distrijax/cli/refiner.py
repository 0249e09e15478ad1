"""The refiner of `distrijax generate`: its settings, and loading it."""

import argparse
import dataclasses
from typing import Any

import jax.numpy as jnp

from distrijax.checks import finite_number
from distrijax.cli.options import default_dtype
from distrijax.cli.settings import Settings
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.pipelines.base import SDXLPipeline
from distrijax.pipelines.image_to_image import StableDiffusionXLImg2ImgPipeline

SWITCH_AT = 0.8  # the pipeline's default


def with_refiner(options: argparse.Namespace, settings: Settings) -> Settings:
    """Return the settings with a refiner's completed and checked."""
    if settings.refiner is None:
        given = ["--switch-at"] * (settings.switch_at is not None) + ["--offload"] * options.offload
        if given:
            raise DistrijaxError(f"{given[0]} is about a refiner, but there is none; add --refiner")
        return settings
    if settings.mask is not None:
        raise DistrijaxError(
            "--refiner cannot follow --mask; refine the result with --image and the refiner as --model"
        )
    switch_at = SWITCH_AT if settings.switch_at is None else settings.switch_at
    finite_number("--switch-at", switch_at, 0, 1)
    return dataclasses.replace(settings, switch_at=switch_at)


def loading_options(options: argparse.Namespace, settings: Settings, parallel: Parallel) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that a model and its refiner share."""
    return {
        "dtype": jnp.dtype(settings.dtype or default_dtype()),
        "parallel": parallel,
        "progress": not options.quiet,
        "variant": settings.variant,
        "tokenizer": settings.tokenizer,
        "scheduler": settings.scheduler,
        "preview": getattr(options, "preview", None),
    }


def refiner_arguments(options: argparse.Namespace, settings: Settings, parallel: Parallel) -> dict[str, Any]:
    """Load the refiner, if there is one, and return the arguments of a call that it belongs to."""
    if settings.refiner is None:
        return {}
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        settings.refiner, **loading_options(options, settings, parallel)
    )
    refiner.set_progress_bar_config(disable=options.quiet, desc="refining")
    if options.offload:
        refiner.offload()
    return {"refiner": refiner, "switch_at": settings.switch_at, "offload": options.offload}


def follow(refiner: SDXLPipeline | None, pipe: SDXLPipeline) -> None:
    """Give the refiner the devices and the sampler of the model that it follows."""
    if refiner is not None:
        predicts = refiner.scheduler.prediction_type
        refiner.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, prediction_type=predicts)
        refiner.parallel = pipe.parallel

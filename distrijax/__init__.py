"""Stable Diffusion XL in JAX and Flax: one picture spread over a mesh of devices."""

from distrijax.config import TextEncoderConfig, UNetConfig, VAEConfig
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
#from distrijax.pipelines.sdxl import StableDiffusionXLPipeline, StableDiffusionXLPipelineOutput
from distrijax.schedulers import scheduler_from_config

__version__ = "0.1.0"

__all__ = [
    "DistrijaxError",
    "Parallel",


    "TextEncoderConfig",
    "UNetConfig",
    "VAEConfig",
    "scheduler_from_config",
]

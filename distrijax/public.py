"""The public names of the package, which `distrijax` itself imports when one of them is used."""

from distrijax.config import AutoencoderTinyConfig, TextEncoderConfig, UNetConfig, VAEConfig
from distrijax.errors import DistrijaxError
from distrijax.models.autoencoder_tiny import AutoencoderTiny
from distrijax.models.text_encoder import TextEncoder
from distrijax.models.unet import UNet
from distrijax.models.vae import VAE
from distrijax.parallel.options import Parallel
from distrijax.pipelines.callback import StepCallback
from distrijax.pipelines.image_to_image import StableDiffusionXLImg2ImgPipeline
from distrijax.pipelines.inpaint import StableDiffusionXLInpaintPipeline
from distrijax.pipelines.output import StableDiffusionXLPipelineOutput
from distrijax.pipelines.text_to_image import StableDiffusionXLPipeline
from distrijax.schedulers import (
    RECIPES,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    Recipe,
    TCDScheduler,
    UniPCMultistepScheduler,
    scheduler_from_config,
)

__all__ = [
    "RECIPES",
    "VAE",
    "AutoencoderTiny",
    "AutoencoderTinyConfig",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "DistrijaxError",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "Parallel",
    "Recipe",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLPipelineOutput",
    "StepCallback",
    "TCDScheduler",
    "TextEncoder",
    "TextEncoderConfig",
    "UNet",
    "UNetConfig",
    "UniPCMultistepScheduler",
    "VAEConfig",
    "scheduler_from_config",
]

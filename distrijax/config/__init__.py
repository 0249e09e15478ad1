"""Configurations of the models, built from a checkpoint's own JSON.

Each is a frozen dataclass with the names of diffusers or transformers. What the JSON says beyond its fields must have
the value that SDXL has: an attribute or a value that is not supported is refused by name, before anything is built.
"""

from distrijax.config.text_encoder import TextEncoderConfig
from distrijax.config.unet import UNetConfig
from distrijax.config.vae import VAEConfig

__all__ = ["TextEncoderConfig", "UNetConfig", "VAEConfig"]

"""Configurations of the models, built from a checkpoint's own JSON and written back to it.

Each is a frozen dataclass with the names of diffusers or transformers. Attributes beyond its fields must have the value
that SDXL has: an unknown attribute or an unsupported value is refused by name, before anything is built.
"""

from distrijax.config.text_encoder import TextEncoderConfig
from distrijax.config.unet import UNetConfig
from distrijax.config.vae import VAEConfig

__all__ = ["TextEncoderConfig", "UNetConfig", "VAEConfig"]

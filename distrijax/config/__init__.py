"""Model configurations, read from a checkpoint's JSON and written back to it.

Each is a frozen dataclass with the names of diffusers or transformers. Other attributes must have SDXL's values: an
error names every unknown attribute and unsupported value before anything is built.
"""

from distrijax.config.text_encoder import TextEncoderConfig
from distrijax.config.unet import UNetConfig
from distrijax.config.vae import VAEConfig

__all__ = ["TextEncoderConfig", "UNetConfig", "VAEConfig"]

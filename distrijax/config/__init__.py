"""Model configurations, read from a checkpoint's JSON and written back to it.

Each is a frozen dataclass with the names of diffusers or transformers. A table beside it says what every entry of the
JSON may be: an error names every value that is not supported before anything is built.
"""

from distrijax.config.autoencoder_tiny import AutoencoderTinyConfig
from distrijax.config.text_encoder import TextEncoderConfig
from distrijax.config.unet import UNetConfig
from distrijax.config.vae import VAEConfig

__all__ = ["AutoencoderTinyConfig", "TextEncoderConfig", "UNetConfig", "VAEConfig"]

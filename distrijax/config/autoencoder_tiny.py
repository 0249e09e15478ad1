"""Configuration of the tiny autoencoder, built from the `config.json` that diffusers writes."""

import dataclasses
from typing import Any, ClassVar, Self

import numpy as np

from distrijax.config import entry
from distrijax.config.entry import Json, Rule
from distrijax.config.vae import Array

_WIDTHS = entry.several(entry.whole(), 2)
_COUNTS = entry.several(entry.whole(0, 32), 2)

ENTRIES: dict[str, Rule] = {
    **entry.only("AutoencoderTiny", "_class_name"),
    **entry.only("relu", "act_fn"),
    **entry.only("nearest", "upsample_fn"),
    **entry.only(2, "upsampling_scaling_factor"),
    **entry.only(0, "shift_factor"),
    # Neither changes a picture: diffusers derives the first from the decoder's widths, and never upcasts this model.
    "block_out_channels": entry.anything,
    "force_upcast": entry.anything,
    # Of a conversion of latents to bytes, which is not done here.
    "latent_magnitude": entry.number(),
    "latent_shift": entry.number(),
    **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), _WIDTHS),
    **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), _COUNTS),
    "in_channels": entry.whole(1, 64),
    "latent_channels": entry.whole(1, 256),
    "out_channels": entry.whole(1, 64),
    "scaling_factor": entry.number(1e-6, 1e6),
}


@dataclasses.dataclass(frozen=True)
class AutoencoderTinyConfig:
    """Configuration of an `AutoencoderTiny`, with diffusers' names and defaults, which are those of TAESD and TAESD-XL.

    Attributes:
        scaling_factor: 1, because its latents are those of the U-Net already.
    """

    class_name: ClassVar[str] = "AutoencoderTiny"  # diffusers'
    force_upcast: ClassVar[bool] = False

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    latent_channels: int = 4
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: int | float = 3
    latent_shift: float = 0.5
    scaling_factor: float = 1.0

    @property
    def scale_factor(self) -> int:
        """Side length of one latent in pixels."""
        return 2 ** (len(self.decoder_block_out_channels) - 1)

    def to_unet(self, latents: Array) -> Array:
        """Return latents of the autoencoder in the U-Net's scale."""
        return latents * np.float32(self.scaling_factor)

    def from_unet(self, latents: Array) -> Array:
        """Return latents in the U-Net's scale in that of the autoencoder."""
        return latents / np.float32(self.scaling_factor)

    @classmethod
    def from_json(cls, json: Json) -> Self:
        """Build the configuration from the contents of the autoencoder's `config.json`.

        Raises:
            DistrijaxError: an entry is not supported; the message lists them all.
        """
        values = entry.read("VAE", json, ENTRIES)
        config = cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})
        problems = []
        for name in ("encoder_block_out_channels", "decoder_block_out_channels"):
            widths = getattr(config, name)
            if len(set(widths)) > 1:  # no layer changes the width, in diffusers' model either
                problems.append(f"{name} is {list(widths)}; its widths must be equal")
        lengths = {
            name: len(getattr(config, name))
            for name in (
                "encoder_block_out_channels", "decoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks",
            )
        }  # fmt: skip
        if len(set(lengths.values())) > 1:
            stated = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            problems.append(f"{stated} entries: they must agree")
        entry.refuse("VAE", problems)
        return config

    def to_json(self) -> dict[str, Any]:
        """Return a `config.json` that diffusers loads and `from_json` reads back."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        fixed = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2, "shift_factor": 0.0}
        return {"_class_name": self.class_name, **fixed, "force_upcast": False, **values}

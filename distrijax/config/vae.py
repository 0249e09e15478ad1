"""Configuration of the autoencoder, built from the `config.json` that diffusers writes."""

import dataclasses
from typing import Any, ClassVar, Self, TypeVar

import jax
import numpy as np

from distrijax.config import entry
from distrijax.config.entry import Json, Rule

Array = TypeVar("Array", np.ndarray, jax.Array)

_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}

ENTRIES: dict[str, Rule] = {
    **entry.only("AutoencoderKL", "_class_name"),
    **entry.only("silu", "act_fn"),
    **entry.only(None, "shift_factor"),
    **entry.only(True, "mid_block_add_attention use_post_quant_conv use_quant_conv"),
    "block_out_channels": entry.several(entry.whole()),
    **{name: entry.several(entry.choice(kind)) for name, kind in _BLOCKS.items()},
    "force_upcast": entry.flag,
    "in_channels": entry.whole(1, 64),
    "latent_channels": entry.whole(1, 256),
    "latents_mean": entry.optional(entry.several(entry.number(-1e6, 1e6), 1, 256)),
    "latents_std": entry.optional(entry.several(entry.number(1e-6, 1e6), 1, 256)),
    "layers_per_block": entry.whole(1, 32),
    "norm_num_groups": entry.whole(),
    "out_channels": entry.whole(1, 64),
    "sample_size": entry.optional(entry.SIZE),
    "scaling_factor": entry.number(1e-6, 1e6),
}


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Configuration of an `AutoencoderKL`, with diffusers' names and defaults."""

    class_name: ClassVar[str] = "AutoencoderKL"  # diffusers'

    block_out_channels: tuple[int, ...] = (64,)
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] | None = 32
    scaling_factor: float = 0.18215
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True

    @property
    def scale_factor(self) -> int:
        """Side length of one latent in pixels."""
        return 2 ** (len(self.block_out_channels) - 1)

    def to_unet(self, latents: Array) -> Array:
        """Return latents [..., C] of the autoencoder in the U-Net's scale: of unit variance, and mean 0 if it is known.

        As in diffusers, `latents_mean` and `latents_std` count only together.
        """
        if (known := self._statistics(latents.ndim)) is None:
            return latents * np.float32(self.scaling_factor)
        mean, std = known
        return (latents - mean) * (np.float32(self.scaling_factor) / std)

    def from_unet(self, latents: Array) -> Array:
        """Return latents [..., C] in the U-Net's scale in that of the autoencoder."""
        if (known := self._statistics(latents.ndim)) is None:
            return latents / np.float32(self.scaling_factor)
        mean, std = known
        return latents * (std / np.float32(self.scaling_factor)) + mean

    def _statistics(self, ndim: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the mean and deviation of each channel, fp32 [1, ..., C], if both are known."""
        if self.latents_mean is None or self.latents_std is None:
            return None
        mean, std = (np.array(x, np.float32) for x in (self.latents_mean, self.latents_std))
        shape = (1,) * (ndim - 1) + (-1,)
        return mean.reshape(shape), std.reshape(shape)

    @classmethod
    def from_json(cls, json: Json) -> Self:
        """Build the configuration from the contents of the autoencoder's `config.json`.

        Raises:
            DistrijaxError: an entry is not supported; the message lists them all.
        """
        values = entry.read("VAE", json, ENTRIES)
        config = cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})
        widths = config.block_out_channels
        problems = [
            f"{name} has {len(values[name])} entries, block_out_channels has {len(widths)}: they must agree"
            for name in _BLOCKS
            if name in values and len(values[name]) != len(widths)
        ]
        problems += [
            f"{name} has {len(values[name])} entries, but there are {config.latent_channels} latent_channels"
            for name in ("latents_mean", "latents_std")
            if values.get(name) is not None and len(values[name]) != config.latent_channels
        ]
        entry.refuse(
            "VAE", problems + entry.indivisible("norm_num_groups", widths, "block_out_channels", config.norm_num_groups)
        )
        return config

    def to_json(self) -> dict[str, Any]:
        """Return a `config.json` that diffusers loads and `from_json` reads back."""
        blocks = {name: [kind] * len(self.block_out_channels) for name, kind in _BLOCKS.items()}
        values = dataclasses.asdict(self) | {"block_out_channels": list(self.block_out_channels)}
        return {"_class_name": self.class_name, **blocks, **values}

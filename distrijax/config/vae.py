"""Configuration of the autoencoder, built from the `config.json` that diffusers writes."""

import dataclasses
from typing import Any, ClassVar, Self

from distrijax.config import entry
from distrijax.config.entry import Json, Rule

_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}

ENTRIES: dict[str, Rule] = {
    **entry.only("AutoencoderKL", "_class_name"),
    **entry.only("silu", "act_fn"),
    **entry.only(None, "latents_mean latents_std shift_factor"),
    **entry.only(True, "mid_block_add_attention use_post_quant_conv use_quant_conv"),
    "block_out_channels": entry.several(entry.whole()),
    **{name: entry.several(entry.choice(kind)) for name, kind in _BLOCKS.items()},
    "force_upcast": entry.flag,
    "in_channels": entry.whole(1, 64),
    "latent_channels": entry.whole(1, 256),
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
    force_upcast: bool = True

    @property
    def scale_factor(self) -> int:
        """Side length of one latent in pixels."""
        return 2 ** (len(self.block_out_channels) - 1)

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
        entry.refuse(
            "VAE", problems + entry.indivisible("norm_num_groups", widths, "block_out_channels", config.norm_num_groups)
        )
        return config

    def to_json(self) -> dict[str, Any]:
        """Return a `config.json` that diffusers loads and `from_json` reads back."""
        blocks = {name: [kind] * len(self.block_out_channels) for name, kind in _BLOCKS.items()}
        values = dataclasses.asdict(self) | {"block_out_channels": list(self.block_out_channels)}
        return {"_class_name": self.class_name, **blocks, **values}

"""Configuration of the autoencoder, built from the `config.json` that diffusers writes."""

import dataclasses
from typing import Any, ClassVar, Self

from distrijax.config.checks import Json, attribute_problems, refuse

_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
_FIXED: dict[str, tuple] = {
    "act_fn": ("silu",),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None,),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
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
    sample_size: int = 32
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
            DistrijaxError: an attribute or value is not supported; the message lists them all.
        """
        fields = {f.name for f in dataclasses.fields(cls)}
        problems = attribute_problems(json, _FIXED, fields | set(_BLOCKS), cls.class_name)
        channels = tuple(json.get("block_out_channels", (64,)))
        for name, kind in _BLOCKS.items():
            if tuple(json.get(name, (kind,) * len(channels))) != (kind,) * len(channels):
                problems.append(f"{name}={json[name]!r} (supported: {kind!r}, once for each of block_out_channels)")
        refuse("VAE", problems)
        values = {name: json[name] for name in fields if name in json}
        return cls(**values | {"block_out_channels": channels, "force_upcast": bool(json.get("force_upcast", True))})

    def to_json(self) -> dict[str, Any]:
        """Return a `config.json` that diffusers loads and `from_json` reads back."""
        blocks = {name: [kind] * len(self.block_out_channels) for name, kind in _BLOCKS.items()}
        values = dataclasses.asdict(self) | {"block_out_channels": list(self.block_out_channels)}
        return {"_class_name": self.class_name, **blocks, **values}

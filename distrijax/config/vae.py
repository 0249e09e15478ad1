"""Configuration of the autoencoder, built from the `config.json` that diffusers writes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from distrijax.config.checks import fixed_problems, refuse

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
    """An `AutoencoderKL`, with diffusers' names and defaults. A picture's side is `factor` times its latents'."""

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    sample_size: int
    scaling_factor: float
    force_upcast: bool

    @property
    def factor(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> Self:
        """From the contents of the autoencoder's `config.json`.

        Raises:
            DistrijaxError: an attribute or value is not supported; all of them are named.
        """
        own = {f.name for f in dataclasses.fields(cls)} | {"down_block_types", "up_block_types"}
        problems = fixed_problems(json, _FIXED, own)
        if json.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
            problems.append(f"_class_name={json['_class_name']!r} (supported: 'AutoencoderKL')")
        channels = tuple(json.get("block_out_channels", (64,)))
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if tuple(json.get(name, (kind,) * len(channels))) != (kind,) * len(channels):
                problems.append(f"{name}={json[name]!r} (supported: {kind!r}, once for each of block_out_channels)")
        refuse("VAE", problems)
        return cls(
            in_channels=json.get("in_channels", 3),
            out_channels=json.get("out_channels", 3),
            latent_channels=json.get("latent_channels", 4),
            block_out_channels=channels,
            layers_per_block=json.get("layers_per_block", 1),
            norm_num_groups=json.get("norm_num_groups", 32),
            sample_size=json.get("sample_size", 32),
            scaling_factor=json.get("scaling_factor", 0.18215),
            force_upcast=bool(json.get("force_upcast", True)),
        )

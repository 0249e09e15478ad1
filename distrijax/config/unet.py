"""Configuration of the U-Net, built from the `config.json` that diffusers writes."""

import dataclasses
from typing import Any, ClassVar, Self

from distrijax.config.checks import Json, attribute_problems, per_block, refuse

_FIXED: dict[str, tuple] = {
    "act_fn": ("silu",),
    "addition_embed_type": ("text_time",),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1, None),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "upcast_attention": (None, False),
}
# Used only in training or with other values of `addition_embed_type`: no effect on inference.
_IGNORED = {"dropout", "addition_embed_type_num_heads"}
# Attributes stored in fields of another name.
_READ = {"attention_head_dim", "num_attention_heads", "mid_block_type", "transformer_layers_per_block"}
_READ |= {"reverse_transformer_layers_per_block"}
_DERIVED = {"has_mid_block", "attention_heads", "transformer_layers", "mid_transformer_layers", "up_transformer_layers"}
_REQUIRED = ["block_out_channels", "down_block_types", "up_block_types", "cross_attention_dim"]
_REQUIRED += ["addition_time_embed_dim", "projection_class_embeddings_input_dim"]
_DOWN, _UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
_MID = "UNetMidBlock2DCrossAttn"


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Configuration of a `UNet2DConditionModel` of the SDXL family, with diffusers' names and defaults.

    Attributes:
        attention_heads: number of attention heads in each down block.
        transformer_layers: number of transformer blocks in each layer of each down block.
        up_transformer_layers: the same for the up blocks, in their own order.
    """

    class_name: ClassVar[str] = "UNet2DConditionModel"  # diffusers'

    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    has_mid_block: bool
    block_out_channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]
    attention_heads: tuple[int, ...]
    transformer_layers: tuple[tuple[int, ...], ...]
    mid_transformer_layers: int
    up_transformer_layers: tuple[tuple[int, ...], ...]
    cross_attention_dim: int
    addition_time_embed_dim: int
    projection_class_embeddings_input_dim: int
    sample_size: int = 128
    in_channels: int = 4
    out_channels: int = 4
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    use_linear_projection: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    time_cond_proj_dim: int | None = None

    @property
    def row_multiple(self) -> int:
        """Latent rows per row at the deepest level; each device's number of rows must be a multiple of it."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, json: Json) -> Self:
        """Build the configuration from the contents of the U-Net's `config.json`.

        Raises:
            DistrijaxError: an attribute or value is not supported; the message lists them all.
        """
        fields = {f.name for f in dataclasses.fields(cls)} - _DERIVED
        problems = attribute_problems(json, _FIXED, fields | _READ | _IGNORED, cls.class_name)
        if json.get("addition_embed_type") is None:
            problems.append("addition_embed_type is not set (SDXL: 'text_time'; a U-Net of SD 1.x or 2.x has none)")
        problems += [f"{name} is missing" for name in _REQUIRED if json.get(name) is None]
        refuse("U-Net", problems)

        down, up = tuple(json["down_block_types"]), tuple(json["up_block_types"])
        for name, kinds, known in (("down_block_types", down, _DOWN), ("up_block_types", up, _UP)):
            problems += [f"{k!r} in {name} (supported: {', '.join(known)})" for k in kinds if k not in known]
        mid = json.get("mid_block_type", _MID)
        if mid not in (_MID, None):
            problems.append(f"mid_block_type={mid!r} (supported: {_MID!r} or None)")
        blocks, channels = len(down), tuple(json["block_out_channels"])
        layers = per_block(json.get("layers_per_block", 2), blocks)
        heads = per_block(json.get("num_attention_heads") or json.get("attention_head_dim", 8), blocks)
        depth = per_block(json.get("transformer_layers_per_block", 1), blocks)
        lengths = {"up_block_types": up, "block_out_channels": channels, "layers_per_block": layers}
        lengths |= {"attention_head_dim": heads, "transformer_layers_per_block": depth}
        for name, value in lengths.items():
            if len(value) != blocks:
                problems.append(f"{name} has {len(value)} entries, down_block_types has {blocks}: they must agree")
        if not isinstance(json["cross_attention_dim"], int):
            problems.append(f"cross_attention_dim={json['cross_attention_dim']!r} (supported: one number)")
        refuse("U-Net", problems)

        reverse = json.get("reverse_transformer_layers_per_block")
        up_depth = tuple(reversed(depth)) if reverse is None else tuple(reverse)
        values = {name: json[name] for name in fields if name in json} | {
            "sample_size": json.get("sample_size") or 128,
            "down_block_types": down,
            "up_block_types": up,
            "has_mid_block": mid is not None,
            "block_out_channels": channels,
            "layers_per_block": layers,
            "attention_heads": heads,
            "transformer_layers": tuple(per_block(d, k) for d, k in zip(depth, layers, strict=True)),
            "mid_transformer_layers": per_block(depth[-1], 1)[0],
            "up_transformer_layers": _up_layers(up_depth, layers),
        }
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return a `config.json` that diffusers loads and `from_json` reads back."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in _DERIVED}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        values |= {"_class_name": self.class_name, "addition_embed_type": "text_time"}
        values |= {
            "attention_head_dim": list(self.attention_heads),
            "mid_block_type": _MID if self.has_mid_block else None,
        }
        down = [_one_if_alike(counts) for counts in self.transformer_layers]
        values["transformer_layers_per_block"] = down
        if self.up_transformer_layers != _up_layers(tuple(reversed(down)), self.layers_per_block):
            up = [_one_if_alike(counts) for counts in self.up_transformer_layers]
            values["reverse_transformer_layers_per_block"] = up
        return values


def _up_layers(depth: tuple, layers: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(per_block(d, k + 1) for d, k in zip(depth, reversed(layers), strict=True))


def _one_if_alike(counts: tuple[int, ...]) -> int | list[int]:
    return counts[0] if len(set(counts)) == 1 else list(counts)

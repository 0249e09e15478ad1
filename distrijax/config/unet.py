"""Configuration of the U-Net, built from the `config.json` that diffusers writes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from distrijax.config.checks import fixed_problems, per_block, refuse

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
# Said of the training, or of other values of `addition_embed_type`: they change no inference.
_IGNORED = {"dropout", "addition_embed_type_num_heads"}


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """A `UNet2DConditionModel` of the SDXL family, with diffusers' names and defaults.

    `attention_heads` and `transformer_layers` hold a value for each down block; `transformer_layers` one for each layer
    of it; `up_transformer_layers` the same for each up block, in their order.
    """

    sample_size: int
    in_channels: int
    out_channels: int
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
    norm_num_groups: int
    norm_eps: float
    use_linear_projection: bool
    flip_sin_to_cos: bool
    freq_shift: int
    addition_time_embed_dim: int
    projection_class_embeddings_input_dim: int
    time_cond_proj_dim: int | None

    @property
    def factor(self) -> int:
        """How many rows of latents are one where the U-Net is deepest."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> Self:
        """From the contents of the U-Net's `config.json`.

        Raises:
            DistrijaxError: an attribute or value is not supported; all of them are named.
        """
        own = {f.name for f in dataclasses.fields(cls)} - {"has_mid_block", "attention_heads", "mid_transformer_layers"}
        own -= {"transformer_layers", "up_transformer_layers"}
        own |= {"attention_head_dim", "num_attention_heads", "mid_block_type"}
        own |= {"transformer_layers_per_block", "reverse_transformer_layers_per_block"}
        problems = fixed_problems(json, _FIXED, own | _IGNORED)
        if json.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
            problems.append(f"_class_name={json['_class_name']!r} (supported: 'UNet2DConditionModel')")
        if json.get("addition_embed_type") is None:
            problems.append("addition_embed_type is not set (SDXL: 'text_time'; a U-Net of SD 1.x or 2.x has none)")
        required = ["block_out_channels", "down_block_types", "up_block_types", "cross_attention_dim"]
        required += ["addition_time_embed_dim", "projection_class_embeddings_input_dim"]
        problems += [f"{name} is missing" for name in required if json.get(name) is None]
        refuse("U-Net", problems)

        down, up = tuple(json["down_block_types"]), tuple(json["up_block_types"])
        for name, kinds, known in (
            ("down_block_types", down, ("DownBlock2D", "CrossAttnDownBlock2D")),
            ("up_block_types", up, ("UpBlock2D", "CrossAttnUpBlock2D")),
        ):
            problems += [f"{k!r} in {name} (supported: {', '.join(known)})" for k in kinds if k not in known]
        mid = json.get("mid_block_type", "UNetMidBlock2DCrossAttn")
        if mid not in ("UNetMidBlock2DCrossAttn", None):
            problems.append(f"mid_block_type={mid!r} (supported: 'UNetMidBlock2DCrossAttn' or None)")
        n = len(down)
        channels = tuple(json["block_out_channels"])
        layers = per_block(json.get("layers_per_block", 2), n)
        heads = per_block(json.get("num_attention_heads") or json.get("attention_head_dim", 8), n)
        depth = per_block(json.get("transformer_layers_per_block", 1), n)
        lengths = {"up_block_types": up, "block_out_channels": channels, "layers_per_block": layers}
        lengths |= {"attention_head_dim": heads, "transformer_layers_per_block": depth}
        for name, value in lengths.items():
            if len(value) != n:
                problems.append(f"{name} has {len(value)} entries, down_block_types has {n}: they must agree")
        if not isinstance(json["cross_attention_dim"], int):
            problems.append(f"cross_attention_dim={json['cross_attention_dim']!r} (supported: one number)")
        refuse("U-Net", problems)

        reverse = json.get("reverse_transformer_layers_per_block")
        up_depth = tuple(reversed(depth)) if reverse is None else tuple(reverse)
        mid_depth = depth[-1][0] if isinstance(depth[-1], list | tuple) else depth[-1]
        return cls(
            sample_size=json.get("sample_size") or 128,
            in_channels=json.get("in_channels", 4),
            out_channels=json.get("out_channels", 4),
            down_block_types=down,
            up_block_types=up,
            has_mid_block=mid is not None,
            block_out_channels=channels,
            layers_per_block=layers,
            attention_heads=heads,
            transformer_layers=tuple(per_block(d, k) for d, k in zip(depth, layers, strict=True)),
            mid_transformer_layers=mid_depth,
            up_transformer_layers=tuple(per_block(d, k + 1) for d, k in zip(up_depth, reversed(layers), strict=True)),
            cross_attention_dim=json["cross_attention_dim"],
            norm_num_groups=json.get("norm_num_groups", 32),
            norm_eps=json.get("norm_eps", 1e-5),
            use_linear_projection=json.get("use_linear_projection", False),
            flip_sin_to_cos=json.get("flip_sin_to_cos", True),
            freq_shift=json.get("freq_shift", 0),
            addition_time_embed_dim=json["addition_time_embed_dim"],
            projection_class_embeddings_input_dim=json["projection_class_embeddings_input_dim"],
            time_cond_proj_dim=json.get("time_cond_proj_dim"),
        )

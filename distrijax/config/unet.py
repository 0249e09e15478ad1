"""Configuration of the U-Net, built from the `config.json` that diffusers writes."""

import dataclasses
from typing import Any, ClassVar, Self

from distrijax.config import entry
from distrijax.config.entry import Json, Rule

_MID = "UNetMidBlock2DCrossAttn"
_ONE_OR_EACH = entry.several(entry.whole(1, 1024), or_one=True)
_DEPTHS = entry.several(
    entry.several(entry.whole(0, 64), or_one=True), or_one=True
)  # of each block, or of each layer of each block

ENTRIES: dict[str, Rule] = {
    **entry.only("UNet2DConditionModel", "_class_name"),
    **entry.only("silu", "act_fn"),
    **entry.only("text_time", "addition_embed_type"),
    **entry.only("default", "attention_type resnet_time_scale_shift"),
    **entry.only("positional", "time_embedding_type"),
    **entry.only(1, "downsample_padding resnet_out_scale_factor"),
    **entry.only(3, "conv_in_kernel conv_out_kernel"),
    **entry.only(False, "center_input_sample class_embeddings_concat dual_cross_attention only_cross_attention"),
    **entry.only(False, "mid_block_only_cross_attention resnet_skip_time_act"),
    **entry.only(None, "class_embed_type cross_attention_norm encoder_hid_dim encoder_hid_dim_type num_class_embeds"),
    **entry.only(None, "time_embedding_act_fn time_embedding_dim timestep_post_act"),
    "addition_embed_type_num_heads": entry.anything,  # of other types
    "addition_time_embed_dim": entry.even,
    "attention_head_dim": _ONE_OR_EACH,
    "block_out_channels": entry.several(entry.whole()),
    "cross_attention_dim": entry.whole(),
    "down_block_types": entry.several(entry.choice("DownBlock2D", "CrossAttnDownBlock2D")),
    "dropout": entry.anything,  # in training only
    "flip_sin_to_cos": entry.flag,
    "freq_shift": entry.whole(0, 1),
    "in_channels": entry.whole(1, 256),
    "layers_per_block": entry.several(entry.whole(1, 32), or_one=True),
    "mid_block_scale_factor": entry.choice(1, None),
    "mid_block_type": entry.choice(_MID, None),
    "norm_eps": entry.number(1e-12, 1),
    "norm_num_groups": entry.whole(),
    "num_attention_heads": entry.optional(_ONE_OR_EACH),
    "out_channels": entry.whole(1, 256),
    "projection_class_embeddings_input_dim": entry.whole(),
    "reverse_transformer_layers_per_block": entry.optional(_DEPTHS),
    "sample_size": entry.optional(entry.SIZE),
    "time_cond_proj_dim": entry.optional(entry.even),
    "transformer_layers_per_block": _DEPTHS,
    "up_block_types": entry.several(entry.choice("UpBlock2D", "CrossAttnUpBlock2D")),
    # upcast_attention is ignored: it has no effect in diffusers either, whose attention is fused.
    "use_linear_projection": entry.flag,
}
_REQUIRED = ["block_out_channels", "down_block_types", "up_block_types", "cross_attention_dim", "addition_embed_type"]
_REQUIRED += ["addition_time_embed_dim", "projection_class_embeddings_input_dim"]
_DERIVED = {"has_mid_block", "attention_heads", "transformer_layers", "mid_transformer_layers", "up_transformer_layers"}


def inpainting_channels(latent_channels: int) -> int:
    """Return the input channels of a U-Net that sees a mask and a masked picture beside the latents."""
    return 2 * latent_channels + 1


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
    sample_size: int | tuple[int, int] = 128
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

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width of the latents that it was trained on."""
        height, width = entry.per_block(self.sample_size, 2)
        return height, width

    @classmethod
    def from_json(cls, json: Json) -> Self:
        """Build the configuration from the contents of the U-Net's `config.json`.

        Raises:
            DistrijaxError: an entry is not supported; the message lists them all.
        """
        values = entry.read("U-Net", json, ENTRIES, _REQUIRED)
        down, up, widths = (values[name] for name in ("down_block_types", "up_block_types", "block_out_channels"))
        blocks = len(down)
        layers = entry.per_block(values.get("layers_per_block", 2), blocks)
        heads = entry.per_block(values.get("num_attention_heads") or values.get("attention_head_dim", 8), blocks)
        depth = entry.per_block(values.get("transformer_layers_per_block", 1), blocks)
        reverse = values.get("reverse_transformer_layers_per_block")
        up_depth = depth[::-1] if reverse is None else entry.per_block(reverse, blocks)
        lengths = {"up_block_types": up, "block_out_channels": widths, "layers_per_block": layers}
        lengths |= {"attention_head_dim": heads, "transformer_layers_per_block": depth}
        lengths |= {"reverse_transformer_layers_per_block": up_depth}
        entry.refuse("U-Net", [
            f"{name} has {len(value)} entries, down_block_types has {blocks}: they must agree"
            for name, value in lengths.items()
            if len(value) != blocks
        ])  # fmt: skip
        mid = values.get("mid_block_type", _MID)
        names = {f.name for f in dataclasses.fields(cls)} - _DERIVED
        plain = {name: values[name] for name in names if values.get(name) is not None}
        derived = {
            "layers_per_block": layers,
            "has_mid_block": mid is not None,
            "attention_heads": heads,
            "transformer_layers": tuple(entry.per_block(d, k) for d, k in zip(depth, layers, strict=True)),
            "mid_transformer_layers": entry.per_block(depth[-1], 1)[0],
            "up_transformer_layers": _up_layers(up_depth, layers),
        }
        config = cls(**plain | derived)
        entry.refuse("U-Net", config._misfits())
        return config

    def _misfits(self) -> list[str]:
        """Return what does not fit together."""
        widths, layers, last = self.block_out_channels, self.layers_per_block, len(self.block_out_channels) - 1
        problems = entry.indivisible("norm_num_groups", widths, "block_out_channels", self.norm_num_groups)
        if widths[0] % 2:
            problems.append(f"block_out_channels[0] is {widths[0]}; it must be even")
        for place, (width, heads) in enumerate(zip(widths, self.attention_heads, strict=True)):
            kinds = self.down_block_types[place] + self.up_block_types[last - place]
            if "CrossAttn" in kinds or (self.has_mid_block and place == last):
                problems += entry.indivisible("attention_head_dim", [width], "block_out_channels", heads)
        down = zip(self.down_block_types, self.transformer_layers, layers, strict=True)
        up = zip(self.up_block_types, self.up_transformer_layers, [k + 1 for k in layers[::-1]], strict=True)
        return problems + [
            f"{name}transformer_layers_per_block has {len(depths)} entries for a block of {size} layers"
            for name, blocks in (("", down), ("reverse_", up))
            for kind, depths, size in blocks
            if "CrossAttn" in kind and len(depths) != size
        ]

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
    return tuple(entry.per_block(d, k + 1) for d, k in zip(depth, reversed(layers), strict=True))


def _one_if_alike(counts: tuple[int, ...]) -> int | list[int]:
    return counts[0] if len(set(counts)) == 1 else list(counts)

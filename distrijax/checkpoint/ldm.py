"""Conversion of names in the original single files (Stability's generative-models) to diffusers' names.

There, the U-Net numbers its layers consecutively, the autoencoder counts the decoder's blocks from the end, and
OpenCLIP keeps query, key and value in one matrix. The mapping is that of diffusers' `from_single_file`.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from distrijax.checkpoint.tensors import Tensor
from distrijax.config import UNetConfig, VAEConfig

Rename = Callable[[str], str]
Pairs = Iterable[tuple[str, Tensor]]

_UNET_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNET_INSIDE = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "conv",
}
_OPEN_CLIP_OUTSIDE = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_OPEN_CLIP_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def unet_names(config: UNetConfig) -> Rename:
    """Return a function from the original names to diffusers'; it leaves others unchanged."""
    heads = _unet_heads(config)
    pattern = re.compile(r"((?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+)(?:\.(.+))?")

    def rename(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        if module in _UNET_OUTSIDE:
            return f"{_UNET_OUTSIDE[module]}.{leaf}"
        if (match := pattern.fullmatch(module)) and match[1] in heads:
            inside = _UNET_INSIDE.get(match[2], match[2])
            return ".".join(part for part in (heads[match[1]], inside, leaf) if part)
        return name

    return rename


def original_unet_names(config: UNetConfig, modules: Iterable[str]) -> dict[str, list[str]]:
    """Return every original name of each of diffusers' `modules`: the inverse of `unet_names`."""
    rename, originals = unet_names(config), dict[str, list[str]]()
    heads = {new: old for old, new in _unet_heads(config).items()}
    for module in modules:
        names = [old for old, new in _UNET_OUTSIDE.items() if new == module]
        parts = module.split(".")
        for length in range(1, len(parts) + 1):
            if (head := ".".join(parts[:length])) in heads:
                inside = ".".join(parts[length:])
                insides = [inside, *(old for old, new in _UNET_INSIDE.items() if new == inside)]
                names += [f"{heads[head]}.{name}".removesuffix(".") for name in insides]
        originals[module] = [name for name in names if rename(f"{name}.weight") == f"{module}.weight"]
    return originals


def _unet_heads(config: UNetConfig) -> dict[str, str]:
    """Return diffusers' names of the original's numbered layers."""

    def layer(side: str, block: int, kind: str, number: int) -> list[str]:
        kinds = ["resnets", "attentions"] if "CrossAttn" in kind else ["resnets"]
        return [f"{side}_blocks.{block}.{kind}.{number}" for kind in kinds]

    last = len(config.layers_per_block) - 1
    inputs: list[list[str]] = [["conv_in"]]
    for block, (kind, layers) in enumerate(zip(config.down_block_types, config.layers_per_block, strict=True)):
        inputs += [layer("down", block, kind, number) for number in range(layers)]
        inputs += [[f"down_blocks.{block}.downsamplers.0"]] * (block < last)
    outputs: list[list[str]] = []
    for block, (kind, layers) in enumerate(zip(config.up_block_types, reversed(config.layers_per_block), strict=True)):
        outputs += [layer("up", block, kind, number) for number in range(layers + 1)]
        outputs[-1] += [f"up_blocks.{block}.upsamplers.0"] * (block < last)
    middle = ["mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"]
    heads = {f"middle_block.{place}": name for place, name in enumerate(middle)}
    for side, groups in (("input", inputs), ("output", outputs)):
        for number, names in enumerate(groups):
            heads |= {f"{side}_blocks.{number}.{place}": name for place, name in enumerate(names)}
    return heads


def vae_names(config: VAEConfig) -> Rename:
    """Return a function from the original names, and from those before diffusers 0.17, to diffusers'."""
    blocks = len(config.block_out_channels)
    attention = {"group_norm": "norm", "to_q": "q|query", "to_k": "k|key", "to_v": "v|value"}
    attention["to_out.0"] = "proj_out|proj_attn"
    rules = [
        (r"^(encoder|decoder)\.norm_out", r"\1.conv_norm_out"),
        (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
        (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
        (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
        (r"\.nin_shortcut\.", r".conv_shortcut."),
        *((rf"(mid_block\.attentions\.0)\.({old})\.", rf"\1.{new}.") for new, old in attention.items()),
    ]
    for block in range(blocks):
        for side, number in ("encoder.down", block), ("decoder.up", blocks - 1 - block):
            new = f"{side}_blocks.{block}"
            rules.append((rf"^{re.escape(side)}\.{number}\.block\.", f"{new}.resnets."))
            rules.append((rf"^{re.escape(side)}\.{number}\.(down|up)sample\.conv\.", rf"{new}.\1samplers.0.conv."))
    patterns = [(re.compile(old), new) for old, new in rules]

    def rename(name: str) -> str:
        for old, new in patterns:
            name = old.sub(new, name)
        return name

    return rename


def tiny_vae_name(name: str) -> str:
    """Return diffusers' name for one of the original TAESD files, with `taesd_encoder.` or `taesd_decoder.` before it.

    The original decoder counts one layer more, a clamp without weights before all others.
    """
    match = re.fullmatch(r"taesd_(encoder|decoder)\.(\d+)\.(.+)", name)
    if not match:
        return name
    side, number = match[1], int(match[2]) - (match[1] == "decoder")
    return f"{side}.layers.{number}.{match[3]}"


def open_clip(tensors: Pairs) -> Iterator[tuple[str, Tensor]]:
    """Yield OpenCLIP's tensors under transformers' names, with fused matrices split and the projection transposed."""
    for name, tensor in tensors:
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if name in _OPEN_CLIP_OUTSIDE:
            yield _OPEN_CLIP_OUTSIDE[name], tensor
        elif name == "text_projection" and len(tensor.shape) == 2:
            yield "text_projection.weight", tensor.transpose((1, 0))  # there a parameter [I, O], here a linear layer
        elif not match:
            yield name, tensor
        else:
            layer = f"text_model.encoder.layers.{match[1]}"
            fused = re.fullmatch(r"attn\.in_proj_(weight|bias)", match[2])
            if fused and tensor.shape and tensor.shape[0] % 3 == 0:
                third = tensor.shape[0] // 3
                for place, part in enumerate("qkv"):
                    piece = tensor.slice(place * third, (place + 1) * third)
                    yield f"{layer}.self_attn.{part}_proj.{fused[1]}", piece
            else:
                module, _, leaf = match[2].rpartition(".")
                yield f"{layer}.{_OPEN_CLIP_INSIDE.get(module, module)}.{leaf}", tensor

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
    "input_blocks.0.0": "conv_in",
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
_VAE_INSIDE = {"nin_shortcut": "conv_shortcut"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
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
    """Return a function from names below `model.diffusion_model.` to diffusers'; it leaves others unchanged."""
    heads = {"middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0"}
    heads["middle_block.2"] = "mid_block.resnets.1"
    last = len(config.layers_per_block) - 1
    number = 1
    for block, (kind, layers) in enumerate(zip(config.down_block_types, config.layers_per_block, strict=True)):
        for layer in range(layers):
            heads[f"input_blocks.{number}.0"] = f"down_blocks.{block}.resnets.{layer}"
            if "CrossAttn" in kind:
                heads[f"input_blocks.{number}.1"] = f"down_blocks.{block}.attentions.{layer}"
            number += 1
        if block < last:
            heads[f"input_blocks.{number}.0"] = f"down_blocks.{block}.downsamplers.0"
            number += 1
    number = 0
    for block, (kind, layers) in enumerate(zip(config.up_block_types, reversed(config.layers_per_block), strict=True)):
        for layer in range(layers + 1):
            inside = [f"up_blocks.{block}.resnets.{layer}"]
            if "CrossAttn" in kind:
                inside.append(f"up_blocks.{block}.attentions.{layer}")
            if layer == layers and block < last:
                inside.append(f"up_blocks.{block}.upsamplers.0")
            heads |= {f"output_blocks.{number}.{place}": name for place, name in enumerate(inside)}
            number += 1
    pattern = re.compile(r"((?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+)\.(.+)")

    def rename(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        if module in _UNET_OUTSIDE:
            return f"{_UNET_OUTSIDE[module]}.{leaf}"
        if (match := pattern.fullmatch(module)) and match[1] in heads:
            return f"{heads[match[1]]}.{_UNET_INSIDE.get(match[2], match[2])}.{leaf}"
        return name

    return rename


def vae_names(config: VAEConfig) -> Rename:
    """Return a function from names below `first_stage_model.` to diffusers'; it leaves others unchanged."""
    last = len(config.block_out_channels) - 1

    def rename(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        if match := re.fullmatch(r"(encoder|decoder)\.norm_out", module):
            return f"{match[1]}.conv_norm_out.{leaf}"
        if match := re.fullmatch(r"(encoder|decoder)\.mid\.block_([12])\.(\w+)", module):
            side, layer, rest = match.groups()
            return f"{side}.mid_block.resnets.{int(layer) - 1}.{_VAE_INSIDE.get(rest, rest)}.{leaf}"
        if match := re.fullmatch(r"(encoder|decoder)\.mid\.attn_1\.(\w+)", module):
            return f"{match[1]}.mid_block.attentions.0.{_VAE_ATTENTION.get(match[2], match[2])}.{leaf}"
        if match := re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d+)\.block\.(\d+)\.(\w+)", module):
            block = int(match[2]) if match[1] == "encoder.down" else last - int(match[2])
            return f"{match[1]}_blocks.{block}.resnets.{match[3]}.{_VAE_INSIDE.get(match[4], match[4])}.{leaf}"
        if match := re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d+)\.(down|up)sample\.conv", module):
            block = int(match[2]) if match[1] == "encoder.down" else last - int(match[2])
            return f"{match[1]}_blocks.{block}.{match[3]}samplers.0.conv.{leaf}"
        return name

    return rename


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

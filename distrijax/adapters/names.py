"""Which layer a tensor of an adapter belongs to: one table of all families of names.

A tensor's name is that of a layer, in one of many spellings, and a suffix. Every layer of the model is spelled in every
way, and names are looked up: taking them apart would fail where `_` stands for both `.` and itself.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from distrijax.checkpoint import ldm
from distrijax.checkpoint.component import Component
from distrijax.checkpoint.tensors import Shape
from distrijax.config import UNetConfig


class Parameter(NamedTuple):
    """A parameter of a layer: its path in our module, and its shape in torch's order."""

    path: str
    shape: Shape


Layers = Mapping[str, Mapping[str, Parameter]]
"""The layers of a component by diffusers' name: the parameters `weight` and `bias` of each."""


class Layer(NamedTuple):
    """A layer that a tensor may belong to.

    Attributes:
        style: how the U-Net's blocks are counted in the name: `original`, `diffusers`, or "" outside of them.
    """

    component: str
    name: str
    style: str


def layers_of(component: Component) -> Layers:
    """Return the layers that adapters can change: all but the embeddings of tokens and positions."""
    table, layers = component.table(), dict[str, dict[str, Parameter]]()
    for path, shape in component.shapes.items():
        if path.endswith(".embedding"):
            continue
        entry = table.to_torch(path)
        name, _, leaf = entry.name.rpartition(".")
        layers.setdefault(name, {})[leaf] = Parameter(path, tuple(shape[axis] for axis in entry.axes))
    return layers


# How a family spells a layer: a function from diffusers' name to all spellings, with dots.
_PROCESSORS = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora", "to_out.0": "to_out_lora"}
_TEXT_PROCESSORS = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}


def _same(name: str) -> list[str]:
    return [name]


def _text(name: str) -> list[str]:
    return [name, name.removeprefix("text_model.")]  # CLIPTextModel of transformers 5 has no `text_model`


def _processors(name: str) -> list[str]:
    match = re.fullmatch(r"(.*\.attn[12])\.(to_q|to_k|to_v|to_out\.0)", name)
    return [f"{match[1]}.processor.{_PROCESSORS[match[2]]}"] if match else []


def _text_processors(name: str) -> list[str]:
    match = re.fullmatch(r"(.*\.self_attn)\.(\w+)", name)
    return [f"{match[1]}.{_TEXT_PROCESSORS[match[2]]}"] if match else []


class Family(NamedTuple):
    """A way to name layers, as one program or one version of it does.

    Attributes:
        prefix: in front of the layer's name.
        components: those whose layers may be meant; the first whose shapes fit is.
        spelling: returns the spellings of a layer's name; None for the original names of the U-Net.
        dot: what separates the parts of the name.
    """

    prefix: str
    components: tuple[str, ...]
    spelling: Callable[[str], list[str]] | None
    dot: str


_UNET, _TEXT_1, _TEXT_2 = ("unet",), ("text_encoder",), ("text_encoder_2",)
_TEXTS = _TEXT_1 + _TEXT_2

FAMILIES = (
    # kohya: SDXL's U-Net under its original names; others, and files of LCM and Lightning, under diffusers'
    Family("lora_unet_", _UNET, None, "_"),
    Family("lora_unet_", _UNET, _same, "_"),
    Family("lora_te1_", _TEXT_1, _same, "_"),
    Family("lora_te2_", _TEXT_2, _same, "_"),
    Family("lora_te_", _TEXTS, _same, "_"),
    # LyCORIS on its own
    Family("lycoris_", _UNET, None, "_"),
    Family("lycoris_", _UNET, _same, "_"),
    Family("lycoris_", _TEXTS, _text, "_"),
    # diffusers, with PEFT and since 0.17 without
    Family("unet.", _UNET, _same, "."),
    Family("text_encoder.", _TEXT_1, _text, "."),
    Family("text_encoder_2.", _TEXT_2, _text, "."),
    # diffusers before, where attention processors held the weights; without `unet.` in the first versions
    Family("unet.", _UNET, _processors, "."),
    Family("", _UNET, _processors, "."),
    Family("text_encoder.", _TEXT_1, _text_processors, "."),
    Family("text_encoder_2.", _TEXT_2, _text_processors, "."),
    # PEFT's own folders
    Family("base_model.model.", _UNET, _same, "."),
    Family("base_model.model.", _TEXTS, _text, "."),
    Family("", _UNET, _same, "."),
    # ComfyUI
    Family("diffusion_model.", _UNET, None, "."),
    Family("diffusion_model.", _UNET, _same, "."),
    Family("text_encoders.clip_l.transformer.", _TEXT_1, _text, "."),
    Family("text_encoders.clip_g.transformer.", _TEXT_2, _text, "."),
)

SUFFIXES = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_B.bias": "up_bias",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora_B.default.bias": "up_bias",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora.up.bias": "up_bias",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_linear_layer.up.bias": "up_bias",
    "down.weight": "down",  # behind `to_q_lora` of an attention processor
    "up.weight": "up",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    **{name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{name: name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
    **{name: name for name in ("diff", "diff_b", "w_norm", "b_norm")},
}
"""What a tensor is, by the end of its name."""


class Dictionary:
    """Every name that a file may use for a layer of a pipeline's networks.

    Args:
        networks: the layers of each component.
        unet: the configuration of the U-Net.
    """

    def __init__(self, networks: Mapping[str, Layers], unet: UNetConfig):
        self._layers: dict[str, list[Layer]] = {}
        originals = ldm.original_unet_names(unet, networks["unet"])
        for family in FAMILIES:
            for component in family.components:
                for name in networks.get(component, ()):
                    for spelled in originals[name] if family.spelling is None else family.spelling(name):
                        layer = Layer(component, name, _style(spelled))
                        known = self._layers.setdefault(family.prefix + spelled.replace(".", family.dot), [])
                        if layer not in known:
                            known.append(layer)

    def find(self, tensor: str) -> tuple[list[Layer], str] | None:
        """Return the layers that a tensor may belong to, and what it is there; None if the name is unknown."""
        parts = tensor.split(".")
        for length in range(len(parts) - 1, 0, -1):
            layers, suffix = self._layers.get(".".join(parts[:length])), SUFFIXES.get(".".join(parts[length:]))
            if layers and suffix:
                return layers, suffix
        return None


def _style(spelled: str) -> str:
    if spelled.startswith(("input_blocks.", "middle_block.", "output_blocks.")):
        return "original"
    return "diffusers" if spelled.startswith(("down_blocks.", "mid_block.", "up_blocks.")) else ""

"""Writers of adapters in every family of names and of every kind, and dense formulas for what they change."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from distrijax import StableDiffusionXLPipeline
from distrijax.checkpoint import Component

ATTENTION = "transformer_blocks.0"
UNET_LAYERS = {  # layers of `parallel_helpers.small_pipeline`: diffusers' names, and the original ones
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.resnets.0.time_emb_proj": "input_blocks.1.0.emb_layers.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.3.0.skip_connection",
    "down_blocks.1.attentions.0.proj_in": "input_blocks.3.1.proj_in",
    f"down_blocks.1.attentions.0.{ATTENTION}.attn1.to_q": f"input_blocks.3.1.{ATTENTION}.attn1.to_q",
    f"down_blocks.1.attentions.0.{ATTENTION}.attn2.to_k": f"input_blocks.3.1.{ATTENTION}.attn2.to_k",
    f"down_blocks.1.attentions.0.{ATTENTION}.ff.net.0.proj": f"input_blocks.3.1.{ATTENTION}.ff.net.0.proj",
    f"mid_block.attentions.0.{ATTENTION}.ff.net.2": f"middle_block.1.{ATTENTION}.ff.net.2",
    f"mid_block.attentions.0.{ATTENTION}.attn2.to_out.0": f"middle_block.1.{ATTENTION}.attn2.to_out.0",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    f"up_blocks.0.attentions.1.{ATTENTION}.attn1.to_v": f"output_blocks.1.1.{ATTENTION}.attn1.to_v",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.1.conv1": "output_blocks.3.0.in_layers.2",
}
TEXT_LAYERS = [f"text_model.encoder.layers.{x}" for x in ("1.self_attn.q_proj", "0.self_attn.out_proj", "0.mlp.fc1")]
LAYERS = [("unet", name) for name in UNET_LAYERS]
LAYERS += [(part, name) for part in ("text_encoder", "text_encoder_2") for name in TEXT_LAYERS]
LAYERS += [("text_encoder_2", "text_projection")]

KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
PEFT = {"down": "lora_A.weight", "up": "lora_B.weight", "up_bias": "lora_B.bias", "magnitude": "lora_magnitude_vector"}
OLD = {"down": "lora.down.weight", "up": "lora.up.weight"}
TE_OLD = {"down": "lora_linear_layer.down.weight", "up": "lora_linear_layer.up.weight"}
HELD = {"down": "down.weight", "up": "up.weight"}


def spelled(family: str, part: str, layer: str) -> tuple[str, dict[str, str]] | None:
    """Return the name of a layer in a family, and those of its tensors; None if the family has no such layer."""
    text = {"text_encoder": "1", "text_encoder_2": "2"}.get(part)
    kohya = f"lora_te{text}_{layer}" if text else f"lora_unet_{layer}"
    if family == "kohya":
        return (kohya if text else f"lora_unet_{UNET_LAYERS.get(layer, layer)}").replace(".", "_"), KOHYA
    if family == "kohya with diffusers' paths":
        return kohya.replace(".", "_"), KOHYA
    if family == "lycoris":
        return None if text else (f"lycoris_{layer}".replace(".", "_"), KOHYA)
    if family == "peft":
        return f"{part}.{layer}", PEFT
    if family == "peft of transformers 5":
        return f"{part}.{layer.removeprefix('text_model.')}", PEFT
    if family == "peft folder":
        return None if text else (f"base_model.model.{layer}", PEFT)
    if family == "diffusers 0.17":
        return f"{part}.{layer}", TE_OLD if text else OLD
    if family == "comfyui":
        clip = {"1": "text_encoders.clip_l.transformer", "2": "text_encoders.clip_g.transformer"}
        return (f"{clip[text]}.{layer}" if text else f"diffusion_model.{UNET_LAYERS[layer]}"), KOHYA
    assert family in ("processors", "processors without a prefix")
    block, _, name = layer.removesuffix(".0").rpartition(".")
    if text and ".self_attn" in layer:
        return f"{part}.{block}.to_{name.removesuffix('_proj')}_lora", HELD
    if ".attn" in layer:
        prefix = "" if family.endswith("prefix") else "unet."
        return f"{prefix}{block}.processor.{name}_lora", HELD
    return None


FAMILIES = (
    "kohya", "kohya with diffusers' paths", "lycoris", "peft", "peft of transformers 5", "peft folder",
    "diffusers 0.17", "comfyui", "processors", "processors without a prefix",
)  # fmt: skip


def weights(pipe: StableDiffusionXLPipeline) -> dict[tuple[str, str], np.ndarray]:
    """Return every weight in fp32 by component and torch's name, in torch's order of axes."""
    found = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        component = Component.from_module(part, getattr(pipe, part))
        table = component.table()
        for path, tensor in component.tensors.items():
            entry = table.to_torch(path)
            found[part, entry.name] = np.asarray(tensor.load(), np.float32).transpose(entry.axes)
    return found


def lora(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the tensors of a LoRA for a weight, and what they add at scale 1."""
    down = rng.standard_normal((rank, *shape[1:])).astype(np.float32) * 0.1
    up = rng.standard_normal((shape[0], rank, *[1] * (len(shape) - 2))).astype(np.float32) * 0.1
    return {"down": down, "up": up}, dense_lora(down, up)


def dense_lora(down: np.ndarray, up: np.ndarray) -> np.ndarray:
    matrix = up.reshape(len(up), -1).astype(np.float64) @ down.reshape(len(down), -1)
    return matrix.reshape(len(up), *down.shape[1:])


_TUCKER = ("t1", "t2"), ("w1_a", "w2_a"), ("w1_b", "w2_b")


def tensors_of(rng: np.random.Generator, kind: str, shape: tuple[int, ...], rank: int) -> tuple[dict[str, Any], Any]:
    """Return the tensors of a kind for a weight, in kohya's names, and what they add at scale 1."""
    outputs, inputs, *kernel = shape

    def draw(*size: int) -> np.ndarray:
        return rng.standard_normal(size).astype(np.float32) * 0.3

    if kind == "tucker":
        other = rank + 1
        down, mid, up = draw(rank, inputs, 1, 1), draw(other, rank, *kernel), draw(outputs, other, 1, 1)
        change = np.einsum("om,mn...,ni->oi...", up[:, :, 0, 0].astype(float), mid, down[:, :, 0, 0])
        return {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}, change
    if kind == "loha":
        made = {f"hada_w{i}_a": draw(outputs, rank) for i in "12"}
        made |= {f"hada_w{i}_b": draw(rank, inputs * int(np.prod(kernel))) for i in "12"}
        first, second = (made[f"hada_w{i}_a"].astype(float) @ made[f"hada_w{i}_b"] for i in "12")
        return made, (first * second).reshape(shape)
    if kind == "loha tucker":
        made = {f"hada_w{i}_a": draw(rank, outputs) for i in "12"} | {f"hada_w{i}_b": draw(rank, inputs) for i in "12"}
        made |= {f"hada_t{i}": draw(rank, rank, *kernel) for i in "12"}
        cores, a, b = ([made[f"hada_{name}"].astype(float) for name in names] for names in _TUCKER)
        parts = [np.einsum("mn...,np,mq->qp...", cores[i], b[i], a[i]) for i in range(2)]
        return made, parts[0] * parts[1]
    assert kind.startswith("lokr")
    a, b = (2, 2) if outputs % 2 == inputs % 2 == 0 else (1, 1)
    rest = outputs // a, inputs // b
    first = {"lokr_w1": draw(a, b)} if "w1" in kind else {"lokr_w1_a": draw(a, rank), "lokr_w1_b": draw(rank, b)}
    w1 = first["lokr_w1"].astype(float) if "w1" in kind else first["lokr_w1_a"].astype(float) @ first["lokr_w1_b"]
    if "w2" in kind:
        second = {"lokr_w2": draw(*rest, *kernel)}
        w2 = second["lokr_w2"].astype(float)
    elif "tucker" in kind:
        second = {"lokr_w2_a": draw(rank, rest[0]), "lokr_w2_b": draw(rank, rest[1])}
        second["lokr_t2"] = draw(rank, rank, *kernel)
        w2 = np.einsum("mn...,mo,ni->oi...", second["lokr_t2"].astype(float), second["lokr_w2_a"], second["lokr_w2_b"])
    else:
        second = {"lokr_w2_a": draw(rest[0], rank), "lokr_w2_b": draw(rank, rest[1] * int(np.prod(kernel)))}
        w2 = (second["lokr_w2_a"].astype(float) @ second["lokr_w2_b"]).reshape(*rest, *kernel)
    return first | second, np.kron(w1.reshape(a, b, *[1] * len(kernel)), w2)


def every_layer(
    family: str, shapes: dict[tuple[str, str], np.ndarray], seed: int = 0
) -> Iterator[tuple[tuple[str, str], str, dict[str, str], int, np.random.Generator]]:
    """Yield (part, layer), its name in the family, those of its tensors, a rank, and a generator."""
    rng = np.random.default_rng(seed)
    for number, (part, layer) in enumerate(LAYERS):
        if (part, f"{layer}.weight") in shapes and (found := spelled(family, part, layer)):
            yield (part, layer), *found, (1, 4, 7)[number % 3], rng


def kohya_file(shapes: dict[tuple[str, str], np.ndarray], rank: int, seed: int = 0) -> tuple[dict[str, Any], dict]:
    """Return a LoRA of one rank for every layer, and what it adds to each weight."""
    state, changes = {}, {}
    for (part, layer), name, tensors, _, rng in every_layer("kohya", shapes, seed):
        made, changes[part, f"{layer}.weight"] = lora(rng, shapes[part, f"{layer}.weight"].shape, rank)
        state |= {f"{name}.{tensors[what]}": array for what, array in made.items()}
    return state, changes

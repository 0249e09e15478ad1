"""What is no adapter of a model: other kinds of files, and adapters of other models."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

OTHERS = (
    (r"lora_controlnet$|control_model\.|controlnet_|lllite_|input_hint_block", "a Control-LoRA or a ControlNet"),
    (r".*\b(oft_blocks|oft_diag|oft_R|oft_r|boft_)", "an OFT or BOFT, which rotates weights"),
    (r".*\.(a1|a2|b1|b2)\.weight$", "a GLoRA"),
    (r".*\.(on_input|ia3_l)\b", "an IA3"),
    (
        r"((lora_unet|lora_transformer)_|(diffusion_model|transformer)\.)?(double|single)_(transformer_)?blocks",
        "for Flux",
    ),
    (r"(lora_unet_|diffusion_model\.)?joint_blocks|lora_te3_", "for Stable Diffusion 3"),
    (r"lora_transformer_|transformer\.", "for a diffusion transformer, such as Flux or Stable Diffusion 3"),
    (r"(image_proj|ip_adapter)\.", "an IP-Adapter"),
    (r"(emb_params|clip_l|clip_g|string_to_param)(\.|$)", "a textual inversion, which is an embedding of a word"),
    (r"model\.diffusion_model\.|conditioner\.|first_stage_model\.|(encoder|decoder)\.", "a model, not an adapter"),
    (r".*\.lora_embedding_[AB]", "a LoRA with new embeddings of tokens"),
)
"""The first pattern that the start of some unknown tensor's name matches tells what a file holds."""

BUNDLED = re.compile(r"bundle_emb\.([^.]+)\.")
"""Embeddings of words that LyCORIS and OneTrainer store in the same file."""

OLDER = (("1", "(sd_|stable-diffusion-)v1", 768), ("2", "(sd_|stable-diffusion-)v2", 1024))
"""Older models: how a file's header calls them, and the width of the text that their cross-attention reads."""


def other_kind(names: Iterable[str]) -> str | None:
    """Return what a file holds that is no adapter of SDXL, and how that was told; None if it may be one."""
    for pattern, what in OTHERS:
        if match := next((name for name in names if re.match(pattern, name)), None):
            return f"{what} (it holds {match})"
    return None


def other_model(header: Mapping[str, str], tensors: Mapping[str, np.ndarray], width: int) -> str | None:
    """Return which other model an adapter is for, if its header says so or the width of its text shows.

    Args:
        width: that this model's cross-attention reads.
    """
    named = [name for key in ("ss_base_model_version", "modelspec.architecture") if (name := header.get(key))]
    keys = re.compile(r".*attn2[._](processor[._])?to_[kv]\b.*(down|lora_A)\.|.*attn2_to_[kv]\.lora_down\.")
    widths = {x.size // len(x) for name, x in tensors.items() if x.ndim > 1 and len(x) and keys.match(name)}
    for title, pattern, text in OLDER:
        if any(re.search(pattern, name) for name in named) or widths == {text} != {width}:
            return f"Stable Diffusion {title}"
    return next((name for name in named if "xl" not in name), None)

"""What a single file holds, told by the names and the shapes of its tensors."""

import re
from collections.abc import Mapping

from distrijax.checkpoint.tensors import Tensor

# The first pattern that matches the name of some tensor tells what kind of model a file holds instead of SDXL.
_OTHERS = (
    (r"lora_(unet|te\d?)_|.*\.(lora_(A|B|up|down)|hada_w1_a|lokr_w1)\b", "a LoRA, which is added to a model"),
    (r"(model\.diffusion_model\.)?double_blocks\.", "a Flux model"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "a Stable Diffusion 3 model"),
    (r"control_model\.|controlnet_|lora_controlnet|lllite_|(.*\.)?input_hint_block", "a ControlNet, or a part of one"),
    (r"(image_proj|ip_adapter)\.", "an IP-Adapter"),
    (r"cond_stage_model\.", "a Stable Diffusion 1 or 2 model"),
    (
        r"edm_(mean|std)$",
        "a Playground v2.5 model, whose latents are scaled differently; use its diffusers folder",
    ),
    (r"edm_vpred\.", "a CosXL model, which was trained on the noise levels of EDM; use a model of SDXL's own form"),
    (
        r"scaled_fp8$|.*\.(scale_weight|scale_input|weight_scale|absmax|quant_map|quant_state\..*)$",
        "a quantised model, which needs a loader of its own; use the fp16 or bf16 file of the model",
    ),
)

# Prefixes of a component's tensor names, the usual one first; and what identifies the names of a component alone.
_PREFIXES = {
    "unet": ("model.diffusion_model.", "unet.", "diffusion_model."),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("conditioner.embedders.0.transformer.", "text_encoder."),
    "text_encoder_2": ("conditioner.embedders.1.model.", "conditioner.embedders.0.model.", "text_encoder_2."),
}
TINY_VAE = r"(taesd_(encoder|decoder)|(encoder|decoder)\.layers)\.\d+\.(conv\.\d+\.)?(weight|bias)$"
_SIGNS = {
    "unet": r"input_blocks\.|down_blocks\.",
    "vae": rf"(encoder|decoder)\.(down|up|mid)|{TINY_VAE}",
    "text_encoder": r"(text_model\.)?embeddings\.token_embedding\.",
    "text_encoder_2": r"(text_model\.embeddings\.|embeddings\.)?token_embedding\.",
}

# Tensors that no picture depends on: the noise schedule of training, the state of a trainer, and the average of the
# weights that it keeps (diffusers leaves it out too).
HARMLESS = re.compile(
    r"denoiser\.(sigmas|log_sigmas)|model_ema\..*|(first_stage_model\.|vae\.)?loss\..*|optimizer(_states)?\..*"
    r"|(log_)?sigmas|betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|lvlb_weights"
    r"|scale_factor|logvar|global_step|epoch|iteration"
)

# Models that were trained on v instead of noise, or to zero terminal SNR, contain empty tensors of these names.
TRAINED: dict[str, dict[str, object]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True},
}

_SDXL = {(320, 2816): "base", (384, 2560): "refiner"}  # widths of the first convolution and of the added embedding


def other_model(state: Mapping[str, Tensor]) -> str | None:
    """Return what a file holds that is not of SDXL's form, and how that was told; None if it may be SDXL."""
    for pattern, what in _OTHERS:
        if match := next((name for name in state if re.match(pattern, name)), None):
            return f"{what} (it holds {match})"
    for name, tensor in state.items():
        if "float8" in tensor.dtype.name:
            return f"an fp8 model ({name} is {tensor.dtype.name}); use the fp16 or bf16 file of the model"
    return None


def prefixes(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the components that a file holds, and the prefix of each one's tensors: none in a file with it alone."""
    found = {}
    for name, choices in _PREFIXES.items():
        present = [prefix for prefix in choices if any(key.startswith(prefix) for key in state)]
        if present:
            found[name] = present[0]
    return found or {name: "" for name, sign in _SIGNS.items() if any(re.match(sign, key) for key in state)}


def published_form(unet: Mapping[str, Tensor]) -> tuple[str | None, dict[str, int]]:
    """Return which published U-Net has these shapes, `base`, `refiner` or None, and how its config differs."""

    def shape(*names: str) -> tuple[int, ...]:
        return next((unet[name].shape for name in names if name in unet), ())

    first, guidance = shape("input_blocks.0.0.weight", "conv_in.weight"), shape("time_embedding.cond_proj.weight")
    added = shape("label_emb.0.0.weight", "add_embedding.linear_1.weight")
    if len(first) != 4 or len(added) != 2:
        return None, {}
    changes = {"in_channels": first[1]} | ({"time_cond_proj_dim": guidance[1]} if len(guidance) == 2 else {})
    return _SDXL.get((first[0], added[1])), changes


def missing(name: str, state: Mapping[str, Tensor]) -> str:
    """Return the message that a file does not hold a component, and what it holds instead."""
    held = list(prefixes(state))
    title = {"unet": "U-Net", "vae": "VAE"}.get(held[0], "text encoder") if len(held) == 1 else ""
    alone = (
        f", but a single {title}: give a model, and this file as its {held[0]}" if title else f"; give one as {name}"
    )
    return f"is not a whole checkpoint: it holds no {name} (tensors {_PREFIXES[name][0]}*){alone}"

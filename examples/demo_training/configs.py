"""Sizes of the demo model, in the words of the JSON files that diffusers and transformers read."""

from collections.abc import Sequence
from typing import Any

from distrijax.config import TextEncoderConfig, UNetConfig, VAEConfig

VAE_JSON: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [16, 32, 48, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "force_upcast": False,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 256,
    "scaling_factor": 1.0,  # set to 1 / (deviation of the latents) once the autoencoder is trained
}

TEXT_WIDTHS = (64, 128)  # of the two encoders; the U-Net sees both side by side

UNET_JSON: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 6 * 32 + TEXT_WIDTHS[1],
    "attention_head_dim": [2, 4, 8],  # heads, in spite of the name: diffusers kept it for old files
    "block_out_channels": [32, 64, 128],
    "cross_attention_dim": sum(TEXT_WIDTHS),
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "transformer_layers_per_block": [1, 1, 1],
    "layers_per_block": [4, 2, 1],  # more of the cheap ones, which draw the outlines
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 8,
    "norm_eps": 1e-5,
    "sample_size": 32,
    "use_linear_projection": True,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "center_input_sample": False,
    "downsample_padding": 1,
}

SCHEDULER_JSON: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",  # a terminal step without signal asks for v; noise could not be predicted there
    "rescale_betas_zero_snr": True,  # or no picture could be all white or all black (arXiv 2305.08891)
    "timestep_spacing": "trailing",
    "steps_offset": 0,
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
    "clip_sample": False,  # for DDIM made from this: it clips to [-1, 1] unless told otherwise, and latents go beyond
    "set_alpha_to_one": False,
}


def vae_config(scaling_factor: float = 1.0) -> VAEConfig:
    return VAEConfig.from_json(VAE_JSON | {"scaling_factor": scaling_factor})


def unet_config(layers: Sequence[int] = UNET_JSON["layers_per_block"]) -> UNetConfig:
    return UNetConfig.from_json(UNET_JSON | {"layers_per_block": list(layers)})


def text_config(index: int, vocab_size: int) -> TextEncoderConfig:
    """Of the first (index 0: no projection, quick GELU) or the second (index 1) text encoder."""
    width = TEXT_WIDTHS[index]
    return TextEncoderConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=(3, 4)[index],
        num_attention_heads=4,
        hidden_act=("quick_gelu", "gelu")[index],
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=(vocab_size - 1, 0)[index],
        with_projection=index == 1,
    )

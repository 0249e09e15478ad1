"""Configurations of the demo model, with the keys of the JSON files that diffusers and transformers read."""

from collections.abc import Sequence
from typing import Any

from distrijax.config import TextEncoderConfig, UNetConfig, VAEConfig

JSON = dict[str, Any]

VAE_JSON: JSON = {
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
    "scaling_factor": 1.0,  # stays 1: `autoencoder.load` puts the scale into `quant_conv`
}

TEXT_WIDTHS = (64, 128)  # of the two encoders, whose states are concatenated for the U-Net

UNET_JSON: JSON = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 6 * 32 + TEXT_WIDTHS[1],
    "attention_head_dim": [2, 4, 8],  # number of heads, despite the name: diffusers keeps it for old files
    "block_out_channels": [32, 64, 128],
    "cross_attention_dim": sum(TEXT_WIDTHS),
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "transformer_layers_per_block": [1, 1, 1],
    "layers_per_block": [4, 2, 1],  # most at the highest resolution, which is cheap and draws the outlines
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

SCHEDULER_JSON: JSON = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",  # the last timestep has no signal, so predicting the noise would say nothing
    "rescale_betas_zero_snr": True,  # without it no picture could be all white or all black (arXiv 2305.08891)
    "timestep_spacing": "trailing",
    "steps_offset": 0,
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
    "clip_sample": False,  # DDIM clips to [-1, 1] by default, and latents exceed that
    "set_alpha_to_one": False,
}


def vae_config() -> VAEConfig:
    return VAEConfig.from_json(VAE_JSON)


def unet_config(layers: Sequence[int] = UNET_JSON["layers_per_block"]) -> UNetConfig:
    return UNetConfig.from_json(UNET_JSON | {"layers_per_block": list(layers)})


def text_config(index: int, vocab_size: int) -> TextEncoderConfig:
    """Return the configuration of the first (0: no projection, quick GELU) or the second (1) text encoder."""
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

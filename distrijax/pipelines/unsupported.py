"""Methods of diffusers' pipelines that do not apply here, and what to do instead."""

from distrijax.config.unet import inpainting_channels

_FITS = "weights stay on the devices; `distrijax plan` shows whether a model fits, and bfloat16 halves its size"
_FUSED = "attention is fused where the device supports it; remove the call"
ADVICE = {
    "to": "weights are placed when they are loaded: choose devices with Parallel(devices=…) and "
    "the dtype with from_pretrained(dtype=…)",
    "cuda": "weights are already on JAX's default device; remove the call",
    "enable_model_cpu_offload": _FITS,
    "enable_sequential_cpu_offload": _FITS,
    "enable_group_offload": _FITS,
    "enable_xformers_memory_efficient_attention": _FUSED,
    "enable_attention_slicing": _FUSED,
    "set_attn_processor": _FUSED,
    "fuse_qkv_projections": "the compiler fuses what is worthwhile; remove the call",
    "enable_vae_slicing": "pictures are already decoded one at a time; remove the call",
    "enable_vae_tiling": "decoding is spread over the devices of `parallel`; remove the call",
    "upcast_vae": "an autoencoder that overflows in float16 is already loaded as float32; remove the call",
    "enable_freeu": "FreeU is not implemented",
    "enable_lora_hotswap": "another LoRA compiles nothing anyway; remove the call",
    "set_lora_device": "LoRAs stay in the host's memory until they are merged; remove the call",
    "save_lora_weights": "LoRAs are read, not trained; `examples/train_lora.py` writes one",
    "load_ip_adapter": "IP-Adapters are not implemented",
}

LOADING_ADVICE = {
    "device_map": "choose devices with parallel=Parallel(devices=…)",
    "use_safetensors": "weights are always read from safetensors; leave it out",
    "low_cpu_mem_usage": "weights are always read one tensor at a time; leave it out",
    "add_watermarker": "no watermark is added; leave it out",
    "safety_checker": "SDXL has none; leave it out",
}
"""Arguments of diffusers' `from_pretrained` that do not exist here, and what to pass instead."""


def other_inputs(inputs: int, latents: int) -> str:
    """Return the message about a U-Net with another number of input channels than latents have."""
    cure = "use one that takes as many"
    if inputs == inpainting_channels(latents):
        cure = "it is one for inpainting: load it with StableDiffusionXLInpaintPipeline"
    elif inputs == 2 * latents:
        cure = "it is one for editing by instructions (InstructPix2Pix), which no pipeline here can feed"
    return f"the U-Net has {inputs} input channels, but latents have {latents}; {cure}"

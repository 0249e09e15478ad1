"""Small random SDXL checkpoints, written by diffusers itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

VOCABULARY = 600  # bytes alone and at a word's end, some merges, two special tokens

UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "cross_attention_dim": 64,
    "projection_class_embeddings_input_dim": 80,
    "use_linear_projection": True,
    "norm_num_groups": 8,
}
SHALLOW = {"layers_per_block": 1, "transformer_layers_per_block": 1}  # 4 transformer blocks to compile, not 12
VAE: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "scaling_factor": 0.13025,
}
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "projection_dim": 32,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def write_tokenizer(folder: Path, pad: str) -> None:
    """A CLIP tokenizer small enough to write by hand: every byte, and a few merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's table of bytes as characters
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    merges = [("r", "e"), ("re", "d</w>"), ("c", "i"), ("ci", "r")]
    words += [a + b for a, b in merges]
    words += [f"<unused{i}>" for i in range(VOCABULARY - len(words) - 2)] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = pad
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def tokenizer(folder: Path, pad: str) -> CLIPTokenizer:
    write_tokenizer(folder, pad)
    return CLIPTokenizer.from_pretrained(str(folder))


def randomised(module: torch.nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """All weights random, biases and norms too, and exact in `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.05 + (value.ndim == 1 and "weight" in name))
    return module.to(dtype)


def base_parts(dtype: torch.dtype = torch.float32, **unet: Any) -> dict[str, torch.nn.Module]:
    return {
        "unet": randomised(UNet2DConditionModel(**{**UNET, **unet}), 1, dtype),
        "vae": randomised(AutoencoderKL(**VAE), 2, dtype),
        "text_encoder": randomised(CLIPTextModel(CLIPTextConfig(**TEXT)), 3, dtype),
        "text_encoder_2": randomised(CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, hidden_act="gelu")), 4, dtype),
    }


def base_pipeline(folder: Path, dtype: torch.dtype = torch.float32, **unet: Any) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        **base_parts(dtype, **unet),
        tokenizer=tokenizer(folder / "tokenizer", "<|endoftext|>"),
        tokenizer_2=tokenizer(folder / "tokenizer_2", "!"),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        add_watermarker=False,
    )


def refiner_pipeline(folder: Path) -> StableDiffusionXLImg2ImgPipeline:
    sizes = {"cross_attention_dim": 32, "projection_class_embeddings_input_dim": 72}
    parts = base_parts(**sizes)
    return StableDiffusionXLImg2ImgPipeline(
        **(parts | {"text_encoder": None}),
        tokenizer=None,
        tokenizer_2=tokenizer(folder / "tokenizer_2", "!"),
        scheduler=EulerDiscreteScheduler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def states(pipe: Any) -> dict[str, dict[str, torch.Tensor]]:
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {name: getattr(pipe, name).state_dict() for name in names if getattr(pipe, name) is not None}


def assert_same_states(ours: Any, reference: Any) -> None:
    """Bit for bit, dtype included."""
    ours, reference = states(ours), states(reference)
    assert list(ours) == list(reference)
    for name, state in reference.items():
        assert set(ours[name]) == set(state)
        for key, value in state.items():
            assert ours[name][key].dtype == value.dtype, (name, key)
            assert torch.equal(ours[name][key], value), (name, key)


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy()

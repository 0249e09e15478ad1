"""Stage `export`: write everything that was trained into one diffusers folder, in fp16."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx

from demo_training import autoencoder, common, denoiser, grow, text
from demo_training.configs import SCHEDULER_JSON
from distrijax.checkpoint import Checkpoint, Component
from distrijax.checkpoint.export import write_folder
from distrijax.checkpoint.files import appearing
from distrijax.checkpoint.tokenizers import read_tokenizer

INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.42.1",
    "force_zeros_for_empty_prompt": True,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "scheduler": ["diffusers", SCHEDULER_JSON["_class_name"]],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write(out: Path, target: Path, average: Path | None = None) -> None:
    """Write U-Net, autoencoder, text encoders, tokenizers and scheduler to `target`.

    Args:
        average: Checkpoints of the run that this U-Net started from: the mean of both is written, which made fewer
            mistakes than either one (arXiv 2203.05482).
    """
    *_, encoders = text.load(out)
    unet = denoiser.build()
    common.assign(unet, common.load_params(out / "unet"))
    if average is not None:
        start = denoiser.build()
        grow.assign_smaller(start, common.load_params(average))
        nnx.update(unet, jax.tree.map(lambda a, b: (a + b) / 2, nnx.state(unet), nnx.state(start)))
    modules = {
        "unet": unet,
        "vae": autoencoder.load(out),
        "text_encoder": encoders[0],
        "text_encoder_2": encoders[1],
    }
    components = {name: Component.from_module(name, module) for name, module in modules.items()}
    tokenizers = {name: read_tokenizer(out / name) for name in ("tokenizer", "tokenizer_2")}
    checkpoint = Checkpoint(str(out), components, INDEX, SCHEDULER_JSON, tokenizers)
    with appearing(target, overwrite=True) as partial:
        write_folder(checkpoint, partial, dtype=np.float16)
    size = sum(file.stat().st_size for file in target.rglob("*.safetensors"))
    print(f"{target}: {checkpoint.parameters:,} parameters, {size / 1e6:.1f} MB")

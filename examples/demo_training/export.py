"""Stage `export`: write everything that was trained into one diffusers folder, in fp16."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from demo_training import autoencoder, common, denoiser, grow, text
from demo_training.configs import JSON, SCHEDULER_JSON, UNET_JSON, VAE_JSON
from distrijax.checkpoint.build import blueprint
from distrijax.checkpoint.export import write_folder
from distrijax.checkpoint.files import appearing
from distrijax.checkpoint.source import Component, Source
from distrijax.checkpoint.tensors import Tensor
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


def _component(name: str, json: JSON, module: nnx.Module) -> Component:
    prefix = "text_model." if name.startswith("text_encoder") else ""
    tensors = {}
    for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        array = np.asarray(leaf[...])
        tensors[".".join(map(str, path))] = Tensor(array.shape, array.dtype, partial(np.asarray, array))
    return Component(name, json, blueprint(name, json, name), tensors, name, prefix)


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
        "unet": (UNET_JSON, unet),
        "vae": (VAE_JSON, autoencoder.load(out)),
        "text_encoder": (encoders[0].config.to_json(), encoders[0]),
        "text_encoder_2": (encoders[1].config.to_json(), encoders[1]),
    }
    components = {name: _component(name, json, module) for name, (json, module) in modules.items()}
    tokenizers = {name: read_tokenizer(out / name) for name in ("tokenizer", "tokenizer_2")}
    source = Source(str(out), components, SCHEDULER_JSON, INDEX, tokenizers)
    with appearing(target, overwrite=True) as partial:
        write_folder(source, partial, dtype=np.float16)
    size = sum(file.stat().st_size for file in target.rglob("*.safetensors"))
    print(f"{target}: {sum(c.blueprint.parameters for c in components.values()):,} parameters, {size / 1e6:.1f} MB")

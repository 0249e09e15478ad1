"""Stage `unpack`: turn a diffusers folder back into checkpoints, so that its training can continue."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from demo_training import common
from demo_training.autoencoder import LATENT_STD
from distrijax.checkpoint.load import load


def write(source: Path, out: Path) -> None:
    """Write OUT/text, OUT/vae, the tokenizers, and the U-Net as OUT/begin: weights only, without optimizer state."""
    parts = load(source, dtype=jnp.float32)
    encoders = nnx.List([parts.text_encoder, parts.text_encoder_2])
    for name, module in (("text", nnx.List([encoders])), ("vae", parts.vae), ("begin", parts.unet)):
        common.save(out / name, 0, {"params": nnx.state(module, nnx.Param)})
    statistics = {"latent_mean": [0.0] * 4, "latent_std": LATENT_STD.tolist()}  # `export` has normalized them
    (out / "vae" / "scaling.json").write_text(json.dumps(statistics))
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(source / name, out / name, dirs_exist_ok=True)

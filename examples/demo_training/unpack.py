"""Stage `unpack`: a diffusers folder back into the checkpoints of a run, so that its training can go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from demo_training import common
from demo_training.autoencoder import SPREAD
from distrijax.checkpoint.load import load


def write(source: Path, out: Path) -> None:
    """Write OUT/text, OUT/vae and the tokenizers of `source`, and its U-Net as OUT/begin, all of them weights only."""
    parts = load(source, dtype=jnp.float32)
    encoders = nnx.List([parts.text_encoder, parts.text_encoder_2])
    for name, module in (("text", nnx.List([encoders])), ("vae", parts.vae), ("begin", parts.unet)):
        common.save(out / name, 0, {"params": nnx.state(module, nnx.Param)})
    facts = {"latent_mean": [0.0] * 4, "latent_std": SPREAD.tolist()}  # an exported autoencoder is balanced already
    (out / "vae" / "scaling.json").write_text(json.dumps(facts))
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(source / name, out / name, dirs_exist_ok=True)

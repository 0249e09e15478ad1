"""The built-in demo model, a small SDXL that draws coloured shapes."""

from pathlib import Path

MODEL = Path(__file__).parent / "sdxl-demo"
"""A checkpoint in diffusers' format: `StableDiffusionXLPipeline.from_pretrained(MODEL)`, here and in diffusers."""

ADAPTERS = Path(__file__).parent / "adapters"
"""Adapters of the demo model: `outlines.safetensors` is `demo:outlines` where a LoRA is named."""
TOKEN = Path(__file__).parent / "sun.safetensors"
"""A word for it, "sun", by textual inversion (`examples/train_token.py`): `pipe.load_textual_inversion("demo")`."""

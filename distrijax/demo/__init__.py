"""The built-in demo model, a small SDXL that draws coloured shapes, and what draws and judges its pictures."""

from pathlib import Path

MODEL = Path(__file__).parent / "sdxl-demo"
"""A checkpoint in diffusers' format: `StableDiffusionXLPipeline.from_pretrained(MODEL)`, here and in diffusers."""

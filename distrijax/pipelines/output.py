"""The output of a pipeline."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

OUTPUT_TYPES = ("pil", "np", "latent")

Seed = int | Sequence[int] | None


@dataclasses.dataclass(frozen=True)
class StableDiffusionXLPipelineOutput:
    """The pictures of one call.

    Attributes:
        images: PIL images; or an array, [B, H, W, 3] in [0, 1] for `output_type="np"`; or for "latent" [B, C, h, w],
            scaled as the U-Net has them: `vae.config.from_unet` scales them back, with channels last.
        seed: the seed that makes the same pictures again; None if the generator was a JAX key.
        mode: the mode of the devices, which `auto` may have chosen.
    """

    images: Any
    seed: Seed
    mode: str | None = None

    def __getitem__(self, index: Any) -> Any:
        """Return what diffusers' output has there: the images for 0 and "images"."""
        return self.images if index == "images" else (self.images,)[index]


def to_pil(images: np.ndarray) -> list[Image.Image]:
    """Return pictures [B, H, W, 3] in [0, 1] as PIL images."""
    return [Image.fromarray(image) for image in np.rint(images * 255).astype(np.uint8)]

"""Draw pictures of the demo model without its LoRA, at half its weight and at its weight.

python docs/figures/lora.py docs/figures/lora.png
"""

import sys

import numpy as np
from PIL import Image

from distrijax import StableDiffusionXLPipeline

PROMPTS = [
    "a red circle above a blue square",
    "a large purple circle on a yellow background",
    "a green triangle to the left of an orange diamond",
    "a blue square, a red diamond and a green circle in a row",
]


def main() -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained("demo")
    pipe.load_lora_weights("demo:outlines", "outlines")
    rows = []
    for weight in (0.0, 0.5, 1.0):
        pipe.set_adapters("outlines", weight)
        pictures = pipe(PROMPTS, seed=3, num_inference_steps=25, guidance_rescale=0.7).images
        framed = [np.pad(np.asarray(picture), ((3, 3), (3, 3), (0, 0)), constant_values=255) for picture in pictures]
        rows.append(np.concatenate(framed, 1))
    Image.fromarray(np.concatenate(rows)).quantize(128).save(sys.argv[1] if len(sys.argv) > 1 else "lora.png")


if __name__ == "__main__":
    main()

"""Draw the figure of docs/refining.md: python docs/figures/upscaling.py docs/figures/upscaling.png"""

import sys

import numpy as np
from PIL import Image, ImageDraw

from distrijax import StableDiffusionXLPipeline

PROMPTS = ["a red circle above a blue square", "a yellow star to the left of a green triangle"]
SIZE, GAP, TEXT = 256, 8, 20


def main(path: str) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained("demo")
    call = {"num_inference_steps": 25, "generator": 0}
    sheet = Image.new("RGB", (5 * (SIZE + GAP), len(PROMPTS) * (SIZE + TEXT + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, prompt in enumerate(PROMPTS):
        small = pipe(prompt, **call).images[0]
        height, width = 2 * small.height, 2 * small.width
        pictures = {
            f"{small.width}x{small.height}": small,
            "Lanczos alone": small.resize((width, height), Image.Resampling.LANCZOS),
            "upscale, strength 0.35": pipe.upscale(small, 2, prompt=prompt, **call).images[0],
            "method latent, strength 0.5": pipe.upscale(
                small, 2, prompt=prompt, method="latent", strength=0.5, **call
            ).images[0],
            f"{width}x{height} at once": pipe(prompt, height=height, width=width, **call).images[0],
        }
        top = row * (SIZE + TEXT + GAP)
        for column, (title, picture) in enumerate(pictures.items()):
            sheet.paste(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC), (column * (SIZE + GAP), top + TEXT))
            draw.text((column * (SIZE + GAP), top + 4), title, "black")
            print(prompt, title, f"contrast {np.asarray(picture).std():.1f}")
    sheet.save(path)


if __name__ == "__main__":
    main(sys.argv[1])

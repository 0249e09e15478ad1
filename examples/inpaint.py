"""Paint a part of a picture anew; without a picture, make one first and change its lower half.

python examples/inpaint.py "a vase" --image photo.png --mask mask.png --model sdxl
python examples/inpaint.py
"""

import argparse

import jax
import jax.numpy as jnp
from PIL import Image

from distrijax import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="a red circle above a green triangle")
    parser.add_argument("--image", help="the picture to change (default: one made from another prompt)")
    parser.add_argument("--mask", help="a picture that is white where to paint (default: its lower half)")
    parser.add_argument("--model", default="demo", help="hub id, folder or .safetensors file (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="inpainted.png")
    options = parser.parse_args(arguments)

    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    inpaint = StableDiffusionXLInpaintPipeline.from_pretrained(options.model, dtype=dtype)
    image: Image.Image
    if options.image is not None:
        image = Image.open(options.image)
    else:
        pipe = StableDiffusionXLPipeline.from_pipe(inpaint)  # the same weights, loaded once
        first = "a red circle above a blue square"
        image = pipe(first, num_inference_steps=options.steps, generator=options.seed).images[0]
    mask: Image.Image
    if options.mask is not None:
        mask = Image.open(options.mask)
    else:
        mask = Image.new("L", image.size)
        mask.paste(255, (0, image.height // 2, image.width, image.height))

    changed = inpaint(
        options.prompt,
        image=image,
        mask_image=mask,
        height=image.height // 8 * 8,
        width=image.width // 8 * 8,
        num_inference_steps=options.steps,
        generator=options.seed,
    ).images[0]
    changed.save(options.output)
    print(options.output)


if __name__ == "__main__":
    main()

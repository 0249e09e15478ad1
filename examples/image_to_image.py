"""Change a picture with a prompt; without a picture, make one first and change that.

python examples/image_to_image.py "an oil painting" --image photo.png --model sdxl --strength 0.5
python examples/image_to_image.py
"""

import argparse

import jax
import jax.numpy as jnp
from PIL import Image

from distrijax import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="a yellow circle above a blue square")
    parser.add_argument("--image", help="the picture to begin with (default: one made from another prompt)")
    parser.add_argument("--model", default="demo", help="hub id, folder or .safetensors file (default: %(default)s)")
    parser.add_argument("--strength", type=float, default=0.8, help="from 0, no change, to 1, a new picture")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="changed.png")
    options = parser.parse_args(arguments)

    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    pipe = StableDiffusionXLPipeline.from_pretrained(options.model, dtype=dtype)
    image: Image.Image
    if options.image is not None:
        image = Image.open(options.image)
    else:
        first = "a red circle above a blue square"
        image = pipe(first, num_inference_steps=options.steps, generator=options.seed).images[0]

    img2img = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)  # the same weights, loaded once
    changed = img2img(
        options.prompt,
        image=image,
        strength=options.strength,
        num_inference_steps=options.steps,
        generator=options.seed,
    ).images[0]
    changed.save(options.output)
    print(options.output)


if __name__ == "__main__":
    main()

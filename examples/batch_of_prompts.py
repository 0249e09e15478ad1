"""Make a picture of each line of a file, with every device at work on pictures of its own.

python examples/batch_of_prompts.py prompts.txt --model sdxl --output pictures
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp

from distrijax import Parallel, StableDiffusionXLPipeline


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="a text file with a prompt on each line")
    parser.add_argument("--model", default="demo", help="hub id, folder or .safetensors file (default: %(default)s)")
    parser.add_argument("--each", type=int, default=1, help="pictures that a device makes at once (default: 1)")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; then seed + 1, ...")
    parser.add_argument("--output", type=Path, default=Path("pictures"), help="folder (default: pictures)")
    options = parser.parse_args(arguments)

    prompts = [line.strip() for line in options.prompts.read_text().splitlines() if line.strip()]
    options.output.mkdir(parents=True, exist_ok=True)
    devices = min(len(jax.devices()), len(prompts))
    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    pipe = StableDiffusionXLPipeline.from_pretrained(options.model, dtype=dtype, parallel=Parallel(data=devices))

    size = devices * options.each
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        # A smaller last batch is filled up, so that it has the same shapes and compiles nothing.
        filled = batch + [batch[-1]] * (size - len(batch))
        seeds = [options.seed + start + i for i in range(size)]
        images = pipe(filled, num_inference_steps=options.steps, generator=seeds).images
        for i, image in enumerate(images[: len(batch)]):
            path = options.output / f"{start + i:04d}.png"
            image.save(path)
            print(path, batch[i])


if __name__ == "__main__":
    main()

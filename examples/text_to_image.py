"""Make one picture from a prompt, on one device.

python examples/text_to_image.py
python examples/text_to_image.py "a lighthouse at dusk" --model stabilityai/stable-diffusion-xl-base-1.0
"""

import argparse

import jax
import jax.numpy as jnp

from distrijax import DPMSolverMultistepScheduler, StableDiffusionXLPipeline


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="a red circle above a blue square")
    parser.add_argument("--model", default="demo", help="hub id, folder or .safetensors file (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="picture.png")
    options = parser.parse_args(arguments)

    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    pipe = StableDiffusionXLPipeline.from_pretrained(options.model, dtype=dtype)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    # The same picture as diffusers makes with torch.Generator("cpu").manual_seed(seed).
    image = pipe(options.prompt, num_inference_steps=options.steps, generator=options.seed).images[0]
    image.save(options.output)
    print(options.output)


if __name__ == "__main__":
    main()

"""Spread one picture over all GPUs; without several GPUs, emulate four of them.

python examples/several_gpus.py "a lighthouse at dusk" --model sdxl --size 2048
python examples/several_gpus.py
"""

import argparse

import jax
import jax.numpy as jnp

from distrijax import Parallel, StableDiffusionXLPipeline


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="a red circle above a blue square")
    parser.add_argument("--model", default="demo", help="hub id, folder or .safetensors file (default: %(default)s)")
    parser.add_argument("--size", type=int, help="height and width in pixels (default: the model's own)")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="picture.png")
    options = parser.parse_args(arguments)

    # All devices: each guidance branch gets a half of them, which share the rows. Emulated devices are slower than one
    # real one, but make the picture that as many real ones would.
    parallel = Parallel.auto() if len(jax.devices()) > 1 else Parallel(cfg=2, patch=2, emulate=True)
    print(f"data={parallel.data} cfg={parallel.cfg} patch={parallel.patch}, mode {parallel.mode}")

    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    pipe = StableDiffusionXLPipeline.from_pretrained(options.model, dtype=dtype, parallel=parallel)
    image = pipe(
        options.prompt,
        height=options.size,
        width=options.size,
        num_inference_steps=options.steps,
        generator=options.seed,
    ).images[0]
    image.save(options.output)
    print(options.output)


if __name__ == "__main__":
    main()

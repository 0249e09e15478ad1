#!/usr/bin/env python3
"""Draw captions that training never saw with the demo model, and count how many pictures are correct.

    pip install '.[train]'
    python examples/demo_samples.py --out samples.png                          # the picture of the README
    python examples/demo_samples.py --prompts 48 --seed 11 --scheduler euler_ancestral --steps 40

Prints the captions of wrong pictures and what is wrong. Sixteen take half a minute on two cores. Equal arguments give
equal pictures.
"""

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from demo_training.common import write_sheet
from demo_world import captions, judge

from distrijax import DistrijaxError, StableDiffusionXLPipeline, scheduler_from_config
from distrijax.demo import MODEL
from distrijax.schedulers import SCHEDULERS

BATCH = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="PNG file for a sheet of all pictures (default: none)")
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint (default: the shipped demo model)")
    parser.add_argument("--prompts", type=int, default=16, help="number of captions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of captions and noise (default: %(default)s)")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="scheduler (default: the model's own, euler)")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=5.0, help="default: %(default)s")
    parser.add_argument("--guidance-rescale", type=float, default=0.7, help="default: %(default)s")
    args = parser.parse_args()
    if args.prompts < 1:
        parser.error(f"--prompts is {args.prompts}; it must be 1 or more")
    if args.out and args.out.suffix != ".png":
        parser.error(f"--out is {args.out}; it must end in .png")
    if args.out and not args.out.parent.is_dir():
        parser.error(f"--out is {args.out}; {args.out.parent} must be an existing folder")
    try:
        draw(args)
    except DistrijaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw(args: argparse.Namespace) -> None:
    prompts = [captions.caption(captions.EXAMPLE), *captions.held_out_prompts(args.prompts - 1, seed=args.seed)]
    pipe = StableDiffusionXLPipeline.from_pretrained(args.model, dtype=jnp.float32)
    if args.scheduler:
        pipe.scheduler = scheduler_from_config(pipe.scheduler.config, args.scheduler)
    batches = [
        pipe(
            prompts[start : start + BATCH],
            seed=args.seed + start,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            guidance_rescale=args.guidance_rescale,
            output_type="np",
        ).images
        for start in range(0, len(prompts), BATCH)
    ]
    pictures = np.round(np.concatenate(batches) * 255).astype(np.uint8)
    failures = judge.failures(pictures, prompts)
    for prompt, problems in failures:
        print(f"{prompt}: {'; '.join(problems)}")
    print(f"{len(prompts) - len(failures)} of {len(prompts)} pictures are correct")
    if args.out:
        write_sheet(pictures, 8, args.out)
        print(f"sheet written to {args.out}")


if __name__ == "__main__":
    sys.exit(main())

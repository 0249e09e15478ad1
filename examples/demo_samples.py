#!/usr/bin/env python3
"""Pictures of the demo model on captions that training never saw, on one sheet, and how many of them the judge accepts.

    pip install '.[train]'
    python examples/demo_samples.py --out samples.png                          # the README's
    python examples/demo_samples.py --prompts 48 --seed 11 --scheduler euler_ancestral --steps 40

Prints each refused caption with what is wrong. The same arguments give the same pictures, and the same sheet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from demo_training import common

from distrijax import DistrijaxError, StableDiffusionXLPipeline
from distrijax.demo import MODEL, check, scenes
from distrijax.schedulers import SCHEDULERS, scheduler_from_config

BATCH = 16  # pictures made at once


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="PNG of all pictures (default: none is written)")
    parser.add_argument("--model", type=Path, default=MODEL, help="another checkpoint of the demo's world")
    parser.add_argument("--prompts", type=int, default=16, help="how many captions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of captions and noise (default: %(default)s)")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="(default: the model's own, euler)")
    parser.add_argument("--steps", type=int, default=25, help="(default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=5.0, help="(default: %(default)s)")
    parser.add_argument("--guidance-rescale", type=float, default=0.7, help="(default: %(default)s)")
    args = parser.parse_args()
    if args.prompts < 1:
        parser.error(f"--prompts is {args.prompts}; it must be 1 or more")
    if args.out and args.out.suffix != ".png":
        parser.error(f"--out is {args.out}; it must end in .png")
    if args.out and not args.out.parent.is_dir():
        parser.error(f"--out is {args.out}; {args.out.parent} must be a folder that exists")
    try:
        draw(args)
    except DistrijaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw(args: argparse.Namespace) -> None:
    prompts = [scenes.caption(scenes.EXAMPLE), *scenes.held_out_prompts(args.prompts - 1, seed=args.seed)]
    pipe = StableDiffusionXLPipeline.from_pretrained(args.model, dtype=jnp.float32)
    if args.scheduler:
        pipe.scheduler = scheduler_from_config(pipe.scheduler.to_config(), args.scheduler)
    options = {
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "guidance_rescale": args.guidance_rescale,
    }
    made = [
        pipe(prompts[start : start + BATCH], seed=args.seed + start, output_type="np", **options).images
        for start in range(0, len(prompts), BATCH)
    ]
    pictures = np.round(np.concatenate(made) * 255).astype(np.uint8)
    wrong = check.refused(pictures, prompts)
    for prompt, found in wrong:
        print(f"{prompt}: {'; '.join(found)}")
    print(f"{len(prompts) - len(wrong)} of {len(prompts)} obeyed")
    if args.out:
        common.sheet(pictures, 8, args.out)
        print(f"written to {args.out}")


if __name__ == "__main__":
    sys.exit(main())

"""Measure what the progress bar and a step callback cost.

    python examples/segment_cost.py --steps 32 --repeats 5

The pipeline dispatches several steps at once, ahead of the device, so that a progress bar can follow them. With a
callback it dispatches the steps one by one. This script times the same steps in three dispatches, in those of the
pipeline, and one by one, and prints the median times and their ratios to the first.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

from distrijax import StableDiffusionXLPipeline
from distrijax.pipelines import loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="model for from_pretrained (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=32, help="denoising steps (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each variant (default: %(default)s)")
    options = parser.parse_args()

    pipe = StableDiffusionXLPipeline.from_pretrained(options.model, progress=False)
    pipe.set_progress_bar_config(disable=True)
    default = loop.dispatch_length(options.steps, 0.0)

    def run(length: int, callback: Callable[..., None] | None = None) -> float:
        setattr(loop, "dispatch_length", lambda total, seconds: length)  # noqa: B010  (mypy refuses a plain assignment)
        start = time.perf_counter()
        output = pipe(
            "a red circle",
            seed=0,
            num_inference_steps=options.steps,
            output_type="latent",
            callback_on_step_end=callback,
        )
        output.images.block_until_ready()
        return time.perf_counter() - start

    variants = {
        "three dispatches": partial(run, options.steps),
        f"{default} steps a dispatch": partial(run, default),
        "one by one, with a callback": partial(run, 1, lambda *_: None),
    }
    for variant in variants.values():
        variant()  # compiles
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.repeats):
        for name, variant in variants.items():
            times[name].append(variant())
    baseline = statistics.median(times["three dispatches"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:30} {median:7.3f} s   {median / baseline:5.3f} of three dispatches")


if __name__ == "__main__":
    main()

"""Measure what the progress bar and a step callback cost.

    python examples/segment_cost.py --steps 32 --repeats 5

The pipeline dispatches its scan in segments, ahead of the device, so that a progress bar can follow it. With a callback
it dispatches the steps one by one and waits for each. This script times the same steps as one scan, in segments, and
one by one, and prints the median times and their ratios to one scan.
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
    default = loop.segment_length(options.steps)

    def run(length: int, callback: Callable[..., None] | None = None) -> float:
        setattr(loop, "segment_length", lambda steps: length)  # noqa: B010  (mypy refuses a plain assignment)
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
        "one scan": partial(run, options.steps),
        f"segments of {default}": partial(run, default),
        "one by one, with a callback": partial(run, 1, lambda *_: None),
    }
    for variant in variants.values():
        variant()  # compiles
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.repeats):
        for name, variant in variants.items():
            times[name].append(variant())
    baseline = statistics.median(times["one scan"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:30} {median:7.3f} s   {median / baseline:5.3f} of one scan")


if __name__ == "__main__":
    main()

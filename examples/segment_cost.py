"""What the progress bar and a step callback cost: the same steps as one scan, in segments, and one by one.

    python examples/segment_cost.py --steps 32 --repeats 5

The pipeline dispatches its scan in segments, ahead of the device, so that a bar can follow it; with a callback the
steps are dispatched one by one, each waiting for the host. Prints the median time of each and its ratio to one scan.
"""

import argparse
import statistics
import time
from typing import Any

from distrijax import StableDiffusionXLPipeline
from distrijax.demo import MODEL
from distrijax.pipelines import sdxl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL), help="any source that from_pretrained takes (default: the demo)")
    parser.add_argument("--steps", type=int, default=32, help="denoising steps (default: 32)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, in turn (default: 5)")
    options = parser.parse_args()

    pipe = StableDiffusionXLPipeline.from_pretrained(options.model, progress=False)
    pipe.set_progress_bar_config(disable=True)
    segments = sdxl.segment_length

    def run(length: int, **call: Any) -> float:
        setattr(sdxl, "segment_length", lambda steps: length)  # noqa: B010
        start = time.perf_counter()
        call |= {"num_inference_steps": options.steps, "seed": 0, "output_type": "latent"}
        pipe("a red circle", **call).images.block_until_ready()
        return time.perf_counter() - start

    ways = {
        "one scan": lambda: run(options.steps),
        f"segments of {segments(options.steps)}": lambda: run(segments(options.steps)),
        "one by one, with a callback": lambda: run(1, callback_on_step_end=lambda *_: None),
    }
    for way in ways.values():
        way()  # compiles
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            times[name].append(way())
    base = statistics.median(times["one scan"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:30} {median:7.3f} s   {median / base:5.3f} of one scan")


if __name__ == "__main__":
    main()

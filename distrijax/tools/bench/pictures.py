"""Whole pictures, from prompt to pixels, and the parts of the time until the first one."""

import time

from distrijax.parallel.options import Parallel
from distrijax.runtime.compile import Report
from distrijax.tools.bench import weights
from distrijax.tools.bench.timing import Times
from distrijax.tools.workload import Workload

PROMPT = "a red circle above a blue square"
PARTS = ("encoding", "denoising", "decoding")


def pictures(
    workload: Workload, parallel: Parallel, *, steps: int, runs: int, report: Report
) -> tuple[dict[str, float], dict[str, Times]]:
    """Return the seconds until the first picture by part, and the times of `runs` more, in total and by part."""
    workload.layout(parallel)
    report("loading the model")
    pipe, loading = weights.pipeline(workload.model, workload.dtype, parallel)
    pipe.set_progress_bar_config(disable=True)
    spent: list[dict[str, float]] = []
    for i in range(1 + runs):
        report(f"picture {i} of {runs}" if i else "first picture")
        before, start = dict(pipe.seconds), time.perf_counter()
        pipe(
            [PROMPT] * workload.pictures,
            height=workload.height,
            width=workload.width,
            num_inference_steps=steps,
            guidance_scale=5.0 if workload.guided else 1.0,
            seed=list(range(workload.pictures)),
        )
        whole = time.perf_counter() - start
        spent.append({"whole": whole} | {part: pipe.seconds[part] - before[part] for part in ("compiling", *PARTS)})
    first = {"loading": loading, **spent[0], "whole": loading + spent[0]["whole"]}
    return first, {part: Times(tuple(s[part] for s in spent[1:])) for part in ("whole", *PARTS)}

"""The questions that `distrijax bench` answers, each a function that returns a report."""

import time
from collections.abc import Sequence

from distrijax.parallel.options import Parallel
from distrijax.tools.bench import host, steps, weights
from distrijax.tools.bench.timing import BenchReport, Measurement, RunSettings, take_turns
from distrijax.tools.workload import Workload

PROMPT = "a red circle above a blue square"
PARTS = ("encoding", "denoising", "decoding")


def measure_steps(workload: Workload, parallel: Parallel, settings: RunSettings) -> BenchReport:
    """Time a denoising step of each phase on these devices."""
    parallel = _settled(workload, parallel, settings)
    settings.report("making the model")
    unet = weights.unet(workload.model, workload.dtype, parallel)
    lines = take_turns(steps.mesh_steps(workload, unet, parallel), settings)
    return BenchReport(f"one denoising step, {workload}, {_layout(parallel)}", lines)


def measure_shares(
    workload: Workload, devices: Sequence[int], settings: RunSettings, *, cfg: int, mode: str, max_waiting: float
) -> BenchReport:
    """Time the share of a step that one of N devices computes, for each N in `devices`.

    The facts are how many times faster than one device the arithmetic allows N to be, if no transfer were waited for.
    """
    layouts = [steps.share_layout(workload, n, cfg=cfg, mode=mode, max_waiting=max_waiting) for n in devices]
    settings.report("making the model")
    unet, lines = weights.unet(workload.model, workload.dtype, Parallel()), list[Measurement]()
    for layout in layouts:
        settings.report(f"share of {layout.size}")
        lines += take_turns(steps.share_steps(workload, unet, layout), settings, devices=layout.size)
    alone = next((line.median for line in lines if line.devices == 1), None)
    facts = {
        f"speed-up that the arithmetic allows, {line.devices} devices, {line.name}": alone / line.median
        for line in lines
        if alone
    }
    return BenchReport(f"one device's share of a step, {workload}, cfg={cfg}, {mode}", lines, facts)


def measure_host(workload: Workload, parallel: Parallel, settings: RunSettings) -> BenchReport:
    """Time what the host does to dispatch every program of a picture, without running it."""
    parallel = _settled(workload, parallel, settings)
    lines = take_turns(host.dispatches(workload, parallel), settings)
    return BenchReport(f"host time of a dispatch, {workload}, {_layout(parallel)}", lines)


def measure_pictures(workload: Workload, parallel: Parallel, settings: RunSettings, *, count: int) -> BenchReport:
    """Time whole pictures of `count` denoising steps, in total and by part.

    The facts are the seconds until the first picture, by part.
    """
    parallel = _settled(workload, parallel, settings)
    settings.report("loading the model")
    start = time.perf_counter()
    pipe = weights.pipeline(workload.model, workload.dtype, parallel)
    loading = time.perf_counter() - start
    pipe.set_progress_bar_config(disable=True)
    spent: list[dict[str, float]] = []
    for i in range(1 + settings.runs):
        settings.report(f"picture {i} of {settings.runs}" if i else "first picture")
        before, start = dict(pipe.seconds), time.perf_counter()
        pipe(
            [PROMPT] * workload.pictures,
            height=workload.height,
            width=workload.width,
            num_inference_steps=count,
            guidance_scale=5.0 if workload.guided else 1.0,
            seed=list(range(workload.pictures)),
        )
        whole = time.perf_counter() - start
        spent.append({"whole": whole} | {part: pipe.seconds[part] - before[part] for part in ("compiling", *PARTS)})
    first = {"loading": loading, **spent[0], "whole": loading + spent[0]["whole"]}
    return BenchReport(
        f"one picture of {count} steps, {workload}, {_layout(parallel)}",
        [Measurement(part, tuple(s[part] for s in spent[1:])) for part in ("whole", *PARTS)],
        {f"to the first picture, {part}": seconds for part, seconds in first.items()},
    )


def _settled(workload: Workload, parallel: Parallel, settings: RunSettings) -> Parallel:
    """Return the devices with the mode of these pictures, for which there are rows enough."""
    workload.layout(parallel)
    choice = workload.choose(parallel)
    if choice.why is not None:
        settings.report(choice.why)
    return choice.parallel


def _layout(parallel: Parallel) -> str:
    virtual = " virtual" if parallel.emulate else ""
    return f"data={parallel.data} x cfg={parallel.cfg} x patch={parallel.patch}{virtual} ({parallel.mode})"

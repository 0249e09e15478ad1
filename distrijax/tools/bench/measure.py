"""The questions that `distrijax bench` answers, each a function that returns a report."""

import dataclasses
import gc
from collections.abc import Mapping, Sequence

from distrijax.models.unet import UNet
from distrijax.parallel.options import Parallel
from distrijax.tools.bench import compare, pictures, steps, weights
from distrijax.tools.bench.report import BenchReport, Measurement
from distrijax.tools.bench.steps import DeviceShare
from distrijax.tools.bench.timing import RunSettings, TimedFunction, take_turns
from distrijax.tools.workload import Workload

SWEEPS = {"pixels": "pixels of a side", "steps": "denoising steps", "devices": "devices"}
PAUSE = 0.3  # seconds between runs of two frameworks: threads of the previous one spin for 0.2 s (OpenMP) and disturb


def measure_steps(
    workload: Workload, parallel: Parallel, settings: RunSettings, unet: UNet | None = None
) -> BenchReport:
    """Time a denoising step of each phase on these devices."""
    workload.layout(parallel)
    functions = steps.steps(workload, unet or _unet(workload, parallel, settings), parallel)
    return BenchReport(f"one denoising step, {workload}, {_layout(parallel)}", _steps(functions, settings))


def measure_pictures(workload: Workload, parallel: Parallel, settings: RunSettings, *, count: int) -> BenchReport:
    """Time whole pictures of `count` denoising steps."""
    first, times = pictures.pictures(workload, parallel, steps=count, runs=settings.runs, report=settings.report)
    return BenchReport(
        f"one picture of {count} steps, {workload}, {_layout(parallel)}",
        [Measurement(name, t) for name, t in times.items()],
        {f"to the first picture, {name}": value for name, value in first.items()},
    )


def measure_shares(
    workload: Workload, devices: Sequence[int], settings: RunSettings, *, cfg: int, mode: str
) -> BenchReport:
    """Time the share of a step that one of N devices computes, for each N in `devices`.

    The facts are how many times faster than one device the arithmetic allows N to be, if no transfer were waited for.
    """
    shares = [DeviceShare.of(workload, n, cfg=cfg, mode=mode) for n in devices]
    unet, lines = _unet(workload, Parallel(), settings), list[Measurement]()
    for n, share in zip(devices, shares, strict=True):
        settings.report(f"share of {n}")
        lines += _steps(share.steps(unet), settings, at=n)
    alone = next((line.times.median for line in lines if line.at == 1), None)
    facts = {
        f"speed-up that the arithmetic allows, {line.at} devices, {line.name}": alone / line.times.median
        for line in lines
        if alone
    }
    return BenchReport(f"one device's share of a step by devices, {workload}, cfg={cfg}, {mode}", lines, facts)


def compare_with(
    peers: Sequence[str], workload: Workload, settings: RunSettings, *, torch_compile: bool
) -> BenchReport:
    """Time a step of the U-Net in distrijax and in each of these peers, in turn."""
    compare.check(workload, peers)
    settings.report("making the model")
    arrays = weights.arrays(workload.model, "unet", workload.dtype, Parallel().replicated)
    functions, distances = compare.compare(workload, arrays, peers, torch_compile=torch_compile)
    times = take_turns(functions, settings, pause=PAUSE)
    first = times["distrijax"].median
    return BenchReport(
        f"one step of the U-Net, {workload}, one device, same weights",
        [Measurement(name, t, functions[name].compile_seconds, ratio=t.median / first) for name, t in times.items()],
        {f"relative L2 distance to {name}": distance for name, distance in distances.items()},
    )


def sweep(
    what: str, values: Sequence[int], workload: Workload, parallel: Parallel, settings: RunSettings
) -> BenchReport:
    """Time a step as the pixels of a side grow, or several steps together as their number grows."""
    if what == "pixels":
        workloads = [dataclasses.replace(workload, height=value, width=value) for value in values]
    else:
        workloads = [dataclasses.replace(workload, steps=value) for value in values]
    for each in workloads:
        each.layout(parallel)
    unet, lines = _unet(workload, parallel, settings), list[Measurement]()
    for value, each in zip(values, workloads, strict=True):
        settings.report(f"{what}: {value}")
        for line in measure_steps(each, parallel, settings, unet).measurements:
            if what == "steps":
                line = dataclasses.replace(line, name=f"{line.name}s together", times=line.times * value)
            lines.append(dataclasses.replace(line, at=value))
    size = f"{workload.model.name}, {workload.dtype}" if what == "pixels" else str(workload)
    return BenchReport(f"cost as {SWEEPS[what]} grow, {size}, {_layout(parallel)}", lines)


def _steps(functions: Mapping[str, TimedFunction], settings: RunSettings, at: int | None = None) -> list[Measurement]:
    times = take_turns(functions, settings)
    return [Measurement(f"{name} step", t, functions[name].compile_seconds, at) for name, t in times.items()]


def _unet(workload: Workload, parallel: Parallel, settings: RunSettings) -> UNet:
    gc.collect()  # an earlier model is dropped first
    settings.report("loading the model" if workload.model.has_weights else "making the model")
    return weights.unet(workload.model, workload.dtype, parallel)


def _layout(parallel: Parallel) -> str:
    virtual = " virtual" if parallel.emulate else ""
    return f"data={parallel.data} x cfg={parallel.cfg} x patch={parallel.patch}{virtual} ({parallel.mode})"

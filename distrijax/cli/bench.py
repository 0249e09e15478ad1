"""`distrijax bench`: what steps and pictures cost on this machine."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from distrijax.checks import DTYPES, whole_number
from distrijax.cli.options import (
    Axes,
    Commands,
    add_layout,
    add_workload,
    default_dtype,
    layout,
    workload,
)
from distrijax.cli.targets import check_output
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.runtime.cache import repair_cache
from distrijax.runtime.compile import keep_compiled_programs
from distrijax.tools.bench import measure
from distrijax.tools.bench.timing import BenchReport, RunSettings
from distrijax.tools.workload import Workload


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "bench",
        help="measure steps and pictures on this machine",
        description="Time denoising steps and whole pictures: warmed up, the median of several runs, compilation "
        "apart. Models known by name get random weights, which take as long as real ones.",
    )
    command.set_defaults(run=_bench)
    pictures = add_workload(command, steps=30)
    pictures.add_argument("--dtype", choices=DTYPES, help="(default: bfloat16 on a GPU, float32 on a CPU)")
    devices = add_layout(command)
    devices.add_argument("--emulate", action="store_true", help="virtual devices on one real one")

    what = command.add_argument_group("what", "By default a step, then a picture.").add_mutually_exclusive_group()
    only = "one of the two, or what the host does to dispatch each program, which needs no weights"
    what.add_argument("--only", choices=("step", "picture", "host"), help=only)
    share = "the part of a step that one of N devices computes, with local copies as transfers"
    what.add_argument("--share", metavar="N,...", help=share)

    runs = command.add_argument_group("runs and output")
    runs.add_argument("--runs", type=int, default=5, metavar="N", help="timed runs of each (default: 5)")
    runs.add_argument("--scan", type=int, default=2, metavar="N", help="steps in one dispatch (default: 2)")
    runs.add_argument("--json", type=Path, metavar="FILE", help="write everything, with hardware and versions")
    runs.add_argument("--quiet", action="store_true", help="no progress")


def _bench(options: argparse.Namespace) -> None:
    sizes, shares = layout(options), _shares(options.share)
    for name in ("runs", "scan", "steps"):
        whole_number(f"--{name}", getattr(options, name), 1)
    if options.json is not None:
        check_output("--json", options.json)
    ignored = [f"--{axis}" for axis in sizes if axis != "cfg"] + ["--emulate"] * options.emulate
    if shares and ignored:
        raise DistrijaxError(f"{' and '.join(ignored)}: a share is measured on one device; leave it out")
    case = workload(options, dtype=options.dtype or default_dtype(), steps=options.scan)
    keep_compiled_programs()
    repair_cache()
    reports = []
    for report in _reports(options, sizes, shares, case):
        print(report)
        reports.append(report)
    if options.json is not None:
        mesh = {"data": 1, "cfg": 1, "patch": 1, "mode": options.mode} | sizes
        settings = {**case.json(), **mesh, "runs": options.runs}
        options.json.write_text(json.dumps([report.json(settings) for report in reports], indent=1) + "\n")


def _reports(options: argparse.Namespace, sizes: Axes, shares: list[int], case: Workload) -> Iterator[BenchReport]:
    """Measure what was asked for."""
    settings = RunSettings(options.runs, report=(lambda message: None) if options.quiet else _announce)
    if shares:
        yield measure.measure_shares(
            case, shares, settings, cfg=sizes.get("cfg", 1), mode=options.mode, max_waiting=options.max_waiting
        )
        return
    parallel = Parallel(**sizes, mode=options.mode, emulate=options.emulate, max_waiting=options.max_waiting)
    if options.only == "host":
        yield measure.measure_host(case, parallel, settings)
        return
    if options.only != "picture":
        yield measure.measure_steps(case, parallel, settings)
    if options.only != "step":
        yield measure.measure_pictures(case, parallel, settings, count=options.steps)


def _shares(text: str | None) -> list[int]:
    """Return the numbers of --share."""
    try:
        values = [int(value) for value in text.split(",")] if text else []
    except ValueError:
        raise DistrijaxError(f"--share is {text!r}; it must be a list of numbers, such as 1,2,4,8") from None
    if values != sorted(set(values)) or (values and values[0] < 1):
        raise DistrijaxError(f"--share is {text!r}; its numbers must be 1 or more, in increasing order")
    return values


def _announce(message: str) -> None:
    print(f"bench: {message}", file=sys.stderr)

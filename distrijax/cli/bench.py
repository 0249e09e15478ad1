"""`distrijax bench`: what steps and pictures cost on this machine."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from distrijax.checks import one_of, whole_number
from distrijax.cli.options import (
    DTYPES,
    Axes,
    Commands,
    add_layout,
    add_workload,
    check_output,
    default_dtype,
    layout,
    workload,
)
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.runtime.compile import keep_compiled_programs
from distrijax.tools import plots
from distrijax.tools.bench import measure
from distrijax.tools.bench.compare import PEERS
from distrijax.tools.bench.report import BenchReport
from distrijax.tools.bench.timing import RunSettings
from distrijax.tools.workload import Workload

VALUES = {"pixels": "512,768,1024", "steps": "5,10,20", "devices": "1,2,4,8"}


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

    what = command.add_argument_group("what", "By default a step, then a picture.")
    choice = what.add_mutually_exclusive_group()
    choice.add_argument("--only", choices=("step", "picture"), help="one of the two")
    choice.add_argument(
        "--share",
        metavar="N,...",
        help="the part of a step that one of N devices computes, with local copies as transfers",
    )
    choice.add_argument("--against", metavar="NAME,...", help=f"a step of the U-Net here and in {' or '.join(PEERS)}")
    choice.add_argument("--sweep", choices=tuple(VALUES), help="the cost as this grows")
    what.add_argument("--torch-compile", action="store_true", help="with --against: also diffusers compiled by torch")
    values = "; ".join(f"{value} for {name}" for name, value in VALUES.items())
    what.add_argument("--values", metavar="N,...", help=f"of --sweep (default: {values})")

    runs = command.add_argument_group("runs")
    runs.add_argument("--runs", type=int, default=5, metavar="N", help="timed runs of each (default: 5)")
    runs.add_argument("--warm-up", type=int, default=1, metavar="N", help="untimed runs before them (default: 1)")
    runs.add_argument("--scan", type=int, default=2, metavar="N", help="steps in one dispatch (default: 2)")

    output = command.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="write everything, with hardware and versions")
    output.add_argument("--plot", type=Path, metavar="FILE", help="draw --share or --sweep")
    output.add_argument("--quiet", action="store_true", help="no progress")


def _bench(options: argparse.Namespace) -> None:
    sizes = layout(options)
    _check(options, sizes)
    if options.against:  # by default JAX takes three quarters of a GPU's memory for itself
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    case = workload(options, dtype=options.dtype or default_dtype(), steps=options.scan)
    keep_compiled_programs()
    reports = []
    for report in _reports(options, sizes, case):
        print(report)
        reports.append(report)
    if options.json is not None:
        mesh = {"data": 1, "cfg": 1, "patch": 1, "mode": options.mode} | sizes
        settings = {**case.json(), **mesh, "runs": options.runs, "warm_up": options.warm_up}
        options.json.write_text(json.dumps([report.json(settings) for report in reports], indent=1) + "\n")
    if options.plot is not None:
        axis = measure.SWEEPS[options.sweep or "devices"]
        plots.draw_sweep(options.plot, axis, reports[0].measurements, reports[0].title)


def _reports(options: argparse.Namespace, sizes: Axes, case: Workload) -> Iterator[BenchReport]:
    """Measure what was asked for."""
    settings = RunSettings(options.runs, options.warm_up, (lambda message: None) if options.quiet else _announce)
    cfg, values = sizes.get("cfg", 1), _values(options)
    if options.against is not None:
        peers = options.against.split(",")
        yield measure.compare_with(peers, case, settings, torch_compile=options.torch_compile)
    elif options.share is not None or options.sweep == "devices":
        yield measure.measure_shares(case, values, settings, cfg=cfg, mode=options.mode)
    else:
        parallel = Parallel(**sizes, mode=options.mode, emulate=options.emulate)
        if options.sweep is not None:
            yield measure.sweep(options.sweep, values, case, parallel, settings)
            return
        if options.only != "picture":
            yield measure.measure_steps(case, parallel, settings)
        if options.only != "step":
            yield measure.measure_pictures(case, parallel, settings, count=options.steps)


def _check(options: argparse.Namespace, sizes: Axes) -> None:
    """Refuse what can be refused before anything is read or compiled."""
    for name, least in (("runs", 1), ("warm-up", 0), ("scan", 1), ("steps", 1)):
        whole_number(f"--{name}", getattr(options, name.replace("-", "_")), least)
    peers = [] if options.against is None else options.against.split(",")
    for name in peers:
        one_of("--against", name, PEERS)
        if peers.count(name) > 1:
            raise DistrijaxError(f"--against names {name} twice; name each peer once")
    if options.torch_compile and "diffusers" not in peers:
        raise DistrijaxError("--torch-compile compiles diffusers; add --against diffusers")
    if options.values is not None and options.sweep is None:
        raise DistrijaxError("--values are those of a sweep; add --sweep pixels, steps or devices")
    if options.plot is not None:
        if options.sweep is None and options.share is None:
            raise DistrijaxError("--plot draws a --sweep or a --share; leave it out, or add one of them")
        plots.check_plot(options.plot)
    check_output("--plot", options.plot)
    check_output("--json", options.json)
    if options.share is not None or options.sweep == "devices" or peers:
        ignored = [f"--{axis}" for axis in sizes if axis != "cfg" or peers]
        ignored += ["--emulate"] if options.emulate else []
        if ignored:
            raise DistrijaxError(f"{' and '.join(ignored)}: this is measured on one device; leave it out")
    _values(options)


def _values(options: argparse.Namespace) -> list[int]:
    """Return the numbers of --share or --sweep."""
    text = options.share or (options.values or VALUES[options.sweep] if options.sweep else "")
    try:
        values = [int(value) for value in text.split(",")] if text else []
    except ValueError:
        raise DistrijaxError(f"{text!r} is not a list of numbers, such as 1,2,4,8") from None
    if values != sorted(set(values)) or (values and values[0] < 1):
        raise DistrijaxError(f"{text!r}: the numbers must be 1 or more, in increasing order")
    return values


def _announce(message: str) -> None:
    print(f"bench: {message}", file=sys.stderr)

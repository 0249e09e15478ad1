"""`distrijax bench`: what steps and pictures take on this machine."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from distrijax.cli.options import DTYPES
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel

KNOWN = "sdxl-base, sdxl-refiner, sdxl-mid (random weights), demo, or a checkpoint"
PEERS = ("diffusers", "maxdiffusion")
VALUES = {"pixels": "512,768,1024", "steps": "5,10,20", "devices": "1,2,4,8"}


def add(commands: Any) -> None:
    command = commands.add_parser(
        "bench",
        help="measure steps and pictures on this machine",
        description="Time denoising steps and whole pictures: warmed up, the median of several runs, compilation "
        "apart. Models known by name get random weights, which take as long as any.",
    )
    command.set_defaults(run=_bench)
    case = command.add_argument_group("case")
    case.add_argument("--model", default="sdxl-base", metavar="SOURCE", help=f"{KNOWN} (default: %(default)s)")
    case.add_argument("--height", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's own)")
    case.add_argument("--width", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's own)")
    case.add_argument("--dtype", choices=DTYPES, help="(default: bfloat16 on a GPU, float32 on a CPU)")
    case.add_argument("--no-guidance", action="store_true", help="one branch in place of two")
    case.add_argument("--num-images", type=int, default=1, metavar="N", help="pictures of a batch (default: 1)")
    case.add_argument("--steps", type=int, default=30, metavar="N", help="of a picture (default: 30)")

    devices = command.add_argument_group("devices")
    for name, meaning in (
        ("patch", "that share a picture's rows"),
        ("cfg", "2: either branch has its own"),
        ("data", "groups with pictures of their own"),
    ):
        devices.add_argument(f"--{name}", type=int, default=1, metavar="N", help=f"{meaning} (default: 1)")
    devices.add_argument("--mode", default=Parallel.mode, metavar="NAME", help=f"one of {', '.join(MODES)}")
    devices.add_argument("--emulate", action="store_true", help="virtual devices on one real one")

    what = command.add_argument_group("what", "By default a step, then a picture.")
    one = what.add_mutually_exclusive_group()
    one.add_argument("--only", choices=("step", "picture"), help="one of the two")
    one.add_argument(
        "--share", metavar="N,...", help="a step's work of one of N devices, on one: transfers are local copies"
    )
    one.add_argument(
        "--against", metavar="NAME,...", help=f"the U-Net's step beside {' or '.join(PEERS)}: same weights, in turn"
    )
    one.add_argument("--sweep", choices=tuple(VALUES), help="the cost as this grows")
    what.add_argument("--torch-compile", action="store_true", help="with --against: also diffusers compiled by torch")
    what.add_argument("--values", metavar="N,...", help=f"of --sweep (default: {VALUES})".replace("'", ""))

    runs = command.add_argument_group("runs")
    runs.add_argument("--runs", type=int, default=5, metavar="N", help="timed runs of each (default: 5)")
    runs.add_argument("--warm-up", type=int, default=1, metavar="N", help="runs before, not timed (default: 1)")
    runs.add_argument("--scan", type=int, default=2, metavar="N", help="steps of one dispatch (default: 2)")

    output = command.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="write it all, with hardware and versions")
    output.add_argument("--plot", type=Path, metavar="PNG", help="draw --share or --sweep")
    output.add_argument("--quiet", action="store_true", help="no progress")


def _bench(options: argparse.Namespace) -> None:
    sweep, values, peers = _check(options)
    if peers:  # else JAX takes three quarters of a GPU's memory for itself
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from distrijax.bench import figure, results
    from distrijax.bench.step import Case
    from distrijax.checkpoint import find
    from distrijax.runtime.compile import keep_compiled_programs

    if options.plot is not None:
        figure.check(options.plot)
    model = find(options.model)
    native = 8 * model.unet.sample_size
    case = Case(
        model,
        height=native if options.height is None else options.height,
        width=native if options.width is None else options.width,
        dtype=options.dtype or ("bfloat16" if jax.default_backend() == "gpu" else "float32"),
        guided=not options.no_guidance,
        pictures=options.num_images,
        steps=options.scan,
    )
    keep_compiled_programs()
    effort = results.Effort(options.runs, options.warm_up, (lambda message: None) if options.quiet else _say)
    layout = {name: getattr(options, name) for name in ("data", "cfg", "patch", "mode")}
    if peers:
        answers = [results.beside(peers, case, effort, compile_torch=options.torch_compile)]
    elif options.share is not None:
        answers = [results.shares(case, values, effort, cfg=options.cfg, mode=options.mode)]
    elif sweep is not None:
        parallel = Parallel(**layout, emulate=options.emulate or sweep == "devices")
        answers = [results.sweep(sweep, values, case, parallel, effort)]
    else:
        parallel = Parallel(**layout, emulate=options.emulate)
        case.rows(parallel)
        answers = []
        if options.only != "picture":
            answers.append(results.steps(case, parallel, effort))
            print(answers[-1])
        if options.only != "step":
            answers.append(results.pictures(case, parallel, effort, count=options.steps))
            print(answers[-1])
    if options.share is not None or peers or sweep is not None:
        print(answers[0])
    if options.json is not None:
        settings = case.json() | layout | {"runs": options.runs, "warm_up": options.warm_up}
        options.json.write_text(json.dumps([answer.json(settings) for answer in answers], indent=1) + "\n")
    if options.plot is not None:
        rows = [r if sweep else _by_kind(r) for r in answers[0].rows]
        found = results.by_value(rows)
        axis = results.SWEEPS[sweep or "devices"]
        figure.draw(options.plot, axis, list(found), list(found.values()), answers[0].title)


def _by_kind(row: Any) -> Any:
    import dataclasses

    return dataclasses.replace(row, name=row.name.split(", ")[-1] + " step")


def _check(options: argparse.Namespace) -> tuple[str | None, list[int], list[str]]:
    """What is swept, if anything, the values, and whom to measure beside.

    Raises DistrijaxError for options that do not fit together.
    """
    for name, least in (("runs", 1), ("warm_up", 0), ("scan", 1), ("steps", 1)):
        if getattr(options, name) < least:
            raise DistrijaxError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be {least} or more")
    peers = [] if options.against is None else options.against.split(",")
    if set(peers) - set(PEERS) or len(peers) != len(set(peers)):
        raise DistrijaxError(f"--against is {options.against!r}; it must be {' or '.join(PEERS)}, or both with a comma")
    if options.torch_compile and "diffusers" not in peers:
        raise DistrijaxError("--torch-compile is of diffusers; say --against diffusers")
    if options.values is not None and options.sweep is None:
        raise DistrijaxError("--values are those of a sweep; say --sweep pixels, steps or devices")
    if options.plot is not None and options.sweep is None and options.share is None:
        raise DistrijaxError("--plot draws a --sweep or a --share; leave it out, or add one of them")
    if options.json is not None and not options.json.parent.is_dir():
        raise DistrijaxError(f"--json: there is no folder {options.json.parent}; make it first")
    if options.share is not None or options.sweep == "devices" or options.against is not None:
        named = [f"--{name}" for name in ("data", "patch") if getattr(options, name) != 1]
        named += ["--emulate"] if options.emulate else []
        named += ["--cfg"] if options.against is not None and options.cfg != 1 else []
        if named:
            raise DistrijaxError(f"{' and '.join(named)}: this is measured on one device; leave it out")
    text = options.share or (options.values or VALUES[options.sweep] if options.sweep else "")
    try:
        values = [int(value) for value in text.split(",")] if text else []
    except ValueError:
        raise DistrijaxError(f"{text!r} is not a list of numbers, such as 1,2,4,8") from None
    if values != sorted(set(values)) or (values and values[0] < 1):
        raise DistrijaxError(f"{text!r}: numbers must be above zero, and grow")
    return options.sweep, values, peers


def _say(message: str) -> None:
    print(f"bench: {message}", file=sys.stderr)

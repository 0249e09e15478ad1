"""`distrijax plan`: what a picture will cost, before the GPUs are rented."""

import argparse
import json
import sys
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from distrijax.checkpoint import KNOWN, find
from distrijax.cli.options import DTYPES
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.plan.cards import CARDS, Rates
from distrijax.plan.compiling import prepare, why_not

LAYOUT = {
    "patch": "devices that share a picture's rows",
    "cfg": "2: either guidance branch has its own devices",
    "data": "groups of devices that make different pictures",
}
PLOTS = (".png", ".pdf", ".svg")
OF_LAYOUT = True  # the value of --compare without a number: as many devices as the layout has
RATES = {
    "flops": "FLOP/s that products reach",
    "memory": "bytes/s of the card's memory",
    "link": "bytes/s from the GPUs of a node",
    "network": "bytes/s from other nodes",
    "latency": "seconds of a transfer within a node",
    "network_latency": "seconds of a transfer between nodes",
    "kernel": "seconds between two kernels",
}


def add(commands: Any) -> None:
    command = commands.add_parser(
        "plan",
        help="compile for GPUs that need not be there, and say what a picture costs on them",
        description="Compile the denoising programs for GPUs that need not be there: FLOPs, transfers, memory and "
        "schedule are XLA's own; times are estimated from the card's rates, and say so. No weights are needed, and no "
        "GPU; the CUDA compiler is (pip install 'jax[cuda12]').",
    )
    command.set_defaults(run=_plan)
    picture = command.add_argument_group("picture")
    picture.add_argument(
        "--model",
        default="sdxl-base",
        metavar="SOURCE",
        help=f"{', '.join(KNOWN)}, demo, or a checkpoint (default: %(default)s)",
    )
    picture.add_argument("--height", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's own)")
    picture.add_argument("--width", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's own)")
    picture.add_argument("--steps", type=int, default=50, metavar="N", help="denoising steps (default: 50)")
    picture.add_argument("--num-images", type=int, default=1, metavar="N", help="pictures of a batch (default: 1)")
    picture.add_argument("--no-guidance", action="store_true", help="a guidance scale of 1 or less: one branch")
    picture.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights (default: %(default)s)")

    devices = command.add_argument_group("devices")
    devices.add_argument("--gpu", choices=tuple(CARDS), default="h100", help="the card (default: %(default)s)")
    for name, meaning in LAYOUT.items():
        devices.add_argument(f"--{name}", type=int, metavar="N", help=f"{meaning} (default: 1)")
    devices.add_argument("--nodes", type=int, default=1, metavar="N", help="machines that they are in (default: 1)")
    devices.add_argument("--mode", default=Parallel.mode, metavar="NAME", help=f"one of {', '.join(MODES)}")
    devices.add_argument("--warmup-steps", type=int, default=4, metavar="N", help="(default: %(default)s)")
    devices.add_argument(
        "--compare",
        type=int,
        nargs="?",
        const=OF_LAYOUT,
        metavar="DEVICES",
        help="set all layouts of so many devices (default: as many as the layout given) side by side, recommend one",
    )

    rates = command.add_argument_group("what the estimate assumes (default: parts of the card's peaks)")
    for name, meaning in RATES.items():
        rates.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=meaning)

    output = command.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="everything, as JSON")
    output.add_argument("--hlo", type=Path, metavar="FILE", help="write the scheduled programs, both bodies")
    output.add_argument("--plot", type=Path, metavar="FILE", help="draw the steps' timelines and the memory")


def _plan(options: argparse.Namespace) -> None:
    _check(options)
    if (problem := why_not()) is not None:
        raise DistrijaxError(problem)
    prepare()
    from distrijax.plan import estimate, report

    card, found = CARDS[options.gpu], find(options.model)
    native = 8 * found.unet.sample_size
    request = estimate.Request(
        model=found,
        card=card,
        rates=Rates.of(card, options.dtype, **{name: getattr(options, name) for name in RATES}),
        height=native if options.height is None else options.height,
        width=native if options.width is None else options.width,
        steps=options.steps,
        dtype=options.dtype,
        guided=not options.no_guidance and found.unet.time_cond_proj_dim is None,
        pictures=options.num_images,
        nodes=options.nodes,
    )
    choices = {"mode": options.mode, "warmup_steps": options.warmup_steps}
    if options.compare is not None:
        layout_size = prod(getattr(options, name) or 1 for name in LAYOUT)
        devices = layout_size if options.compare is OF_LAYOUT else options.compare
        plans = estimate.compare(devices, request, choices, _announce)
        print(json.dumps([p.json() for p in plans], indent=1) if options.json else report.comparison(plans))
        return
    layout = {name: getattr(options, name) or 1 for name in LAYOUT}
    _announce("both programs" if layout["patch"] > 1 else "the program")
    made = estimate.plan(request, choices | layout)
    if options.hlo is not None:
        options.hlo.write_text(made.hlo)
    if options.plot is not None:
        from distrijax.plan import figure

        figure.draw(made, options.plot)
    print(json.dumps(made.json(), indent=1) if options.json else report.report(made))


def _check(options: argparse.Namespace) -> None:
    """What can be refused before anything is read or compiled."""
    for name in LAYOUT:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DistrijaxError(f"--{name} is {value}; it must be at least 1")
    if options.compare is not None:
        layout = [f"--{name}" for name in LAYOUT if getattr(options, name) is not None]
        if options.compare is OF_LAYOUT and not layout:
            raise DistrijaxError("--compare needs a number of devices, such as --compare 8")
        if options.compare is not OF_LAYOUT and options.compare < 1:
            raise DistrijaxError(f"--compare is {options.compare}; it must be a number of devices, 1 or more")
        given = [f"--{name}" for name in ("hlo", "plot") if getattr(options, name) is not None]
        given += layout if options.compare is not OF_LAYOUT else []
        if given:
            raise DistrijaxError(f"--compare chooses the layouts itself; leave out {' and '.join(given)}")
    for name in ("hlo", "plot"):
        path = getattr(options, name)
        if path is None:
            continue
        if not path.parent.is_dir():
            raise DistrijaxError(f"--{name}: there is no folder {path.parent}; make it first")
        if path.is_dir():
            raise DistrijaxError(f"--{name}: {path} is a folder; name a file in it")
    if options.plot is not None:
        if options.plot.suffix.lower() not in PLOTS:
            raise DistrijaxError(f"--plot: {options.plot.name} must end in one of {', '.join(PLOTS)}")
        if find_spec("matplotlib") is None:
            raise DistrijaxError("--plot needs matplotlib: pip install 'distrijax[train]'")


def _announce(what: str) -> None:
    print(f"compiling {what} ... (a minute or two for SDXL)", file=sys.stderr, flush=True)

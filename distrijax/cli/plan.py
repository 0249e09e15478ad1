"""`distrijax plan`: what a picture will cost, before any GPU is rented."""

import argparse
import json
import sys

from distrijax.checkpoint import find
from distrijax.checks import DTYPES, whole_number
from distrijax.cli.options import Axes, Commands, add_layout, add_options, add_workload, layout, workload
from distrijax.errors import DistrijaxError
from distrijax.parallel.cards import CARDS, RATES, Rates
from distrijax.parallel.options import Parallel
from distrijax.schedulers import RECIPES, find_recipe
from distrijax.tools.plan import estimate, layouts, report, runs
from distrijax.tools.plan.gpus import missing_compiler, prepare_cuda_compiler
from distrijax.tools.workload import Workload


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "plan",
        help="compile for GPUs that may be absent, and estimate what a picture costs on them",
        description="Compile the denoising programs for GPUs that may be absent. FLOPs, transfers, memory and schedule "
        "are XLA's own; times are estimated from the card's rates. No weights and no GPU are needed, but the CUDA "
        "compiler is (pip install 'jax[cuda12]').",
    )
    command.set_defaults(run=_plan)
    pictures = add_workload(command, steps=50)
    pictures.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights (default: %(default)s)")

    few = "settings of a few-step model, in place of --steps, --no-guidance and --warmup-steps"
    add_options(pictures, ("--recipe", str, "NAME", f"{few}: {', '.join(RECIPES)}"))
    several = command.add_argument_group("pictures of several runs")
    add_options(
        several,
        ("--refiner", str, "SOURCE", "the model that takes the last steps, such as sdxl-refiner"),
        ("--switch-at", float, "X", "part of the noise schedule after which it does (default: 0.8)"),
        ("--upscale", float, "X", "how many times as high and wide the picture becomes, by a second part of the steps"),
        ("--strength", float, "X", "that part (default: 0.35)"),
    )

    devices = add_layout(command)
    devices.add_argument("--warmup-steps", type=int, default=4, metavar="N", help="(default: %(default)s)")
    devices.add_argument("--gpu", choices=tuple(CARDS), default="h100", help="the card (default: %(default)s)")
    devices.add_argument("--nodes", type=int, default=1, metavar="N", help="machines that hold the GPUs (default: 1)")
    devices.add_argument("--compare", type=int, metavar="N", help="set all layouts of N devices side by side")

    rates = command.add_argument_group("what the estimate assumes (the report states the defaults)")
    for name, (meaning, _, unit) in RATES.items():
        base = {"TFLOP/s": "FLOP/s", "GB/s": "bytes/s", "%": "share"}.get(unit, "seconds")
        rates.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=f"{base} {meaning}")

    command.add_argument("--json", action="store_true", help="print the totals as JSON")


def _plan(options: argparse.Namespace) -> None:
    sizes = layout(options)
    recipe = None if options.recipe is None else find_recipe(options.recipe)
    if recipe is not None:
        options.steps, options.warmup_steps = recipe.steps, recipe.warmup_steps
        options.no_guidance = recipe.guidance_scale <= 1
    _check(options, sizes)
    if (problem := missing_compiler()) is not None:
        raise DistrijaxError(problem)
    prepare_cuda_compiler()
    card = CARDS[options.gpu]
    rates = {name: getattr(options, name) for name in RATES if getattr(options, name) is not None}
    whole = workload(options, dtype=options.dtype, steps=options.steps)
    workloads = _runs(options, whole)
    requests = [estimate.Request(run, card, Rates.of(card, options.dtype, **rates), options.nodes) for run in workloads]
    request = requests[0]
    choices = {"mode": options.mode, "warmup_steps": options.warmup_steps, "max_waiting": options.max_waiting}
    parallel = Parallel(**sizes, **choices, emulate=True)
    if options.compare is not None:
        plans = layouts.compare(options.compare, request, parallel, _announce)
        print(json.dumps([plan.json() for plan in plans], indent=1) if options.json else layouts.comparison(plans))
        return
    _announce("both programs" if parallel.patch > 1 else "the program")
    plans = [estimate.plan(request, parallel) for request in requests]
    if options.json:
        print(json.dumps([plan.json() for plan in plans] if len(plans) > 1 else plans[0].json(), indent=1))
        return
    texts = [report.report(plan) for plan in plans] + [runs.summary(plans)] * (len(plans) > 1)
    if recipe is not None:
        texts.append(f"recipe {options.recipe}, for {recipe.weights}: {recipe.advice}")
    print("\n\n".join(texts))


def _runs(options: argparse.Namespace, whole: Workload) -> list[Workload]:
    given = {name: getattr(options, name) for name in ("switch_at", "upscale", "strength")}
    refiner = None if options.refiner is None else find(options.refiner)
    return runs.runs_of(whole, refiner=refiner, **{name: x for name, x in given.items() if x is not None})


def _check(options: argparse.Namespace, sizes: Axes) -> None:
    """Refuse what can be refused before anything is read or compiled."""
    for name, of in (("switch_at", "refiner"), ("strength", "upscale")):
        if getattr(options, name) is not None and getattr(options, of) is None:
            raise DistrijaxError(f"--{name.replace('_', '-')} is about --{of}, which is not given; add it")
    if options.mode == "tensor":
        raise DistrijaxError("--mode is 'tensor', whose program is not planned; choose another, such as full_sync")
    if options.compare is not None:
        whole_number("--compare", options.compare, 1)
        unused = [f"--{name}" for name in sizes]
        unused += [f"--{name}" for name in ("refiner", "upscale") if getattr(options, name) is not None]
        if unused:
            raise DistrijaxError(f"--compare plans several layouts of its own choice; leave out {' and '.join(unused)}")


def _announce(what: str) -> None:
    print(f"compiling {what} ... (a minute or two for SDXL)", file=sys.stderr, flush=True)

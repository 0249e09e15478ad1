"""Options that several commands share."""

import argparse
from typing import Any, TypeAlias

from distrijax.checkpoint import KNOWN, find
from distrijax.checks import whole_number
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import MODES
from distrijax.tools.workload import Workload

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Group: TypeAlias = "argparse._ArgumentGroup"

DTYPES = ("float32", "bfloat16", "float16")
AXES = {
    "patch": "devices that share the rows of a picture",
    "cfg": "2: each guidance branch has its own devices",
    "data": "groups of devices that make different pictures",
}


def add_workload(command: argparse.ArgumentParser, *, steps: int) -> Group:
    """Add the options that describe the pictures."""
    group = command.add_argument_group("pictures")
    models = f"{', '.join(KNOWN)} (random weights), demo, or a checkpoint"
    group.add_argument("--model", default="sdxl-base", metavar="SOURCE", help=f"{models} (default: %(default)s)")
    group.add_argument("--height", type=int, metavar="PIXELS", help="(default: the model's own)")
    group.add_argument("--width", type=int, metavar="PIXELS", help="(default: the model's own)")
    group.add_argument("--steps", type=int, default=steps, metavar="N", help="denoising steps (default: %(default)s)")
    group.add_argument("--num-images", type=int, default=1, metavar="N", help="pictures in a batch (default: 1)")
    group.add_argument("--no-guidance", action="store_true", help="no classifier-free guidance: one branch, not two")
    return group


def add_layout(command: argparse.ArgumentParser) -> Group:
    """Add the options that describe the mesh."""
    group = command.add_argument_group("devices")
    for axis, meaning in AXES.items():
        group.add_argument(f"--{axis}", type=int, metavar="N", help=f"{meaning} (default: 1)")
    group.add_argument("--mode", default=Parallel.mode, metavar="NAME", help=f"one of {', '.join(MODES)}")
    return group


def workload(options: argparse.Namespace, *, dtype: str, steps: int) -> Workload:
    """Return the pictures that the options describe."""
    model = find(options.model)
    native = model.vae.scale_factor * model.unet.sample_size
    return Workload(
        model,
        height=native if options.height is None else options.height,
        width=native if options.width is None else options.width,
        dtype=dtype,
        guided=not options.no_guidance,
        pictures=options.num_images,
        steps=steps,
    )


def layout(options: argparse.Namespace) -> dict[str, Any]:
    """Return the size of each mesh axis that the options name."""
    sizes = {axis: getattr(options, axis) for axis in AXES if getattr(options, axis) is not None}
    return {axis: whole_number(f"--{axis}", size, 1) for axis, size in sizes.items()}

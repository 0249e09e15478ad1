"""Options that several commands share."""

import argparse
from collections.abc import Callable
from typing import TypeAlias, TypedDict, TypeVar, cast

import jax

from distrijax.checkpoint import KNOWN, find
from distrijax.checks import whole_number
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import AUTO, MODES
from distrijax.tools.workload import Workload

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Group: TypeAlias = "argparse._ArgumentGroup"
AnyGroup = TypeVar("AnyGroup", bound="argparse._ActionsContainer")
Row: TypeAlias = tuple[str, Callable[[str], object], str, str]

AXES = {
    "patch": "devices that share the rows of a picture",
    "cfg": "2: each guidance branch has its own devices",
    "data": "groups of devices that make different pictures",
}


AXIS_SIZES = [(f"--{axis}", int, "N", f"{meaning} (default: 1)") for axis, meaning in AXES.items()]
SOURCES = "demo, a converted checkpoint, a diffusers folder, a .safetensors file, or a hub id"
PARTS: list[Row] = [
    ("--variant", str, "NAME", 'which files of weights to read, such as "fp16"'),
    ("--config", str, "SOURCE", "a diffusers folder that a .safetensors file belongs to"),
    ("--unet", str, "SOURCE", "a U-Net in place of the checkpoint's own"),
    ("--vae", str, "SOURCE", "an autoencoder in place of the checkpoint's own"),
    ("--tokenizer", str, "SOURCE", "CLIP's vocabulary, for a .safetensors file"),
]

MAX_WAITING = f"part of a step that devices may wait with --mode {AUTO} (default: {Parallel.max_waiting:g})"


class Axes(TypedDict, total=False):
    """Sizes of mesh axes, as arguments of `Parallel`."""

    data: int
    cfg: int
    patch: int


def add_options(group: AnyGroup, *rows: Row) -> AnyGroup:
    """Add options from rows of flag, type, metavar and help; return the group. One of type bool has a --no- form."""
    for flag, kind, metavar, meaning in rows:
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=meaning)
        else:
            group.add_argument(flag, type=kind, metavar=metavar, help=meaning)
    return group


def add_workload(command: argparse.ArgumentParser, *, steps: int) -> Group:
    """Add the options that describe the pictures."""
    group = command.add_argument_group("pictures")
    models = f"{', '.join(KNOWN)} (random weights), or {SOURCES}"
    group.add_argument("--model", default="sdxl-base", metavar="SOURCE", help=f"{models} (default: %(default)s)")
    group.add_argument("--steps", type=int, default=steps, metavar="N", help="denoising steps (default: %(default)s)")
    group.add_argument("--num-images", type=int, default=1, metavar="N", help="pictures in a batch (default: 1)")
    group.add_argument("--no-guidance", action="store_true", help="no classifier-free guidance: one branch, not two")
    sizes = [(f"--{side}", int, "PIXELS", "(default: the model's own)") for side in ("height", "width")]
    return add_options(group, *sizes)


def add_layout(command: argparse.ArgumentParser) -> Group:
    """Add the options that describe the mesh."""
    group = add_options(command.add_argument_group("devices"), *AXIS_SIZES)
    group.add_argument("--mode", default=Parallel.mode, metavar="NAME", help=f"one of {', '.join((*MODES, AUTO))}")
    group.add_argument("--max-waiting", type=float, default=Parallel.max_waiting, metavar="X", help=MAX_WAITING)
    return group


def default_dtype() -> str:
    """Return the dtype of weights and arithmetic on this machine."""
    return "bfloat16" if jax.default_backend() == "gpu" else "float32"


def workload(options: argparse.Namespace, *, dtype: str, steps: int) -> Workload:
    """Return the pictures that the options describe."""
    model = find(options.model)
    scale, (rows, columns) = model.vae.scale_factor, model.unet.native_size
    return Workload(
        model,
        height=scale * rows if options.height is None else options.height,
        width=scale * columns if options.width is None else options.width,
        dtype=dtype,
        guided=not options.no_guidance,
        pictures=options.num_images,
        steps=steps,
    )


def layout(options: argparse.Namespace) -> Axes:
    """Return the size of each mesh axis that was given."""
    sizes = {axis: getattr(options, axis) for axis in AXES if getattr(options, axis) is not None}
    return cast(Axes, {axis: whole_number(f"--{axis}", size, 1) for axis, size in sizes.items()})

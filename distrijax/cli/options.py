"""Options that several commands share."""

import argparse
from pathlib import Path
from typing import TypeAlias, TypedDict, cast

import jax

from distrijax.checkpoint import KNOWN, find
from distrijax.checks import whole_number
from distrijax.errors import DistrijaxError
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


class Axes(TypedDict, total=False):
    """Sizes of mesh axes, as arguments of `Parallel`."""

    data: int
    cfg: int
    patch: int


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
    add_axes(group)
    group.add_argument("--mode", default=Parallel.mode, metavar="NAME", help=f"one of {', '.join(MODES)}")
    return group


def add_axes(group: Group) -> None:
    """Add the sizes of the mesh axes."""
    for axis, meaning in AXES.items():
        group.add_argument(f"--{axis}", type=int, metavar="N", help=f"{meaning} (default: 1)")


def add_parts(group: "argparse._ActionsContainer") -> None:
    """Add the options that say how a checkpoint is read."""
    group.add_argument("--variant", metavar="NAME", help='which files of weights to read, such as "fp16"')
    group.add_argument("--config", metavar="SOURCE", help="a diffusers folder that a .safetensors file belongs to")
    group.add_argument("--unet", metavar="SOURCE", help="a U-Net in place of the checkpoint's own")
    group.add_argument("--vae", metavar="SOURCE", help="an autoencoder in place of the checkpoint's own")
    group.add_argument("--tokenizer", metavar="SOURCE", help="CLIP's vocabulary, for a .safetensors file")


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


def check_output(option: str, path: Path | None) -> None:
    """Raise DistrijaxError if no file can be written to `path`."""
    if path is not None and not path.parent.is_dir():
        raise DistrijaxError(f"{option}: there is no folder {path.parent}; make it first")
    if path is not None and path.is_dir():
        raise DistrijaxError(f"{option}: {path} is a folder; name a file in it")

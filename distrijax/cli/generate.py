"""`distrijax generate`: prompts to pictures."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from distrijax.checks import DTYPES, finite_number, whole_number
from distrijax.cli.devices import choose_devices, join_processes
from distrijax.cli.options import AXIS_SIZES, PARTS, SOURCES, Commands, add_options, default_dtype
from distrijax.cli.pictures import png, read_picture, read_settings
from distrijax.cli.settings import Settings
from distrijax.cli.targets import Target, choose_targets
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import MODES, TENSOR
from distrijax.pipelines.image_to_image import StableDiffusionXLImg2ImgPipeline
from distrijax.pipelines.text_to_image import StableDiffusionXLPipeline
from distrijax.runtime import processes
from distrijax.runtime.agreement import check_same_everywhere, same_everywhere
from distrijax.schedulers import SCHEDULERS, scheduler_from_config
from distrijax.tools.traffic import Traffic, count_traffic

STRENGTH = 0.3  # the pipeline's default
Pipeline = StableDiffusionXLPipeline | StableDiffusionXLImg2ImgPipeline


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "generate",
        help="make pictures from prompts",
        description="Make a picture of each prompt, as PNG with its settings inside. Without --model, the built-in "
        "demo model draws coloured shapes. The first run of a size compiles it, later runs start at once.",
        argument_default=argparse.SUPPRESS,  # what is absent can come from --like
    )
    command.set_defaults(run=_generate)
    command.add_argument(
        "prompts", nargs="*", metavar="PROMPT", default=[], help="what to draw; each prompt makes a picture of its own"
    )
    command.add_argument("--like", metavar="PNG", type=Path, help="use the settings of a picture made earlier")

    add_options(
        command.add_argument_group("model"),
        ("--model", str, "SOURCE", f"{SOURCES} (default: demo)"),
        *PARTS,
    ).add_argument("--dtype", choices=DTYPES, help="(default: bfloat16 on a GPU, float32 on a CPU)")
    add_options(
        command.add_argument_group("picture"),
        ("--prompt-2", str, "TEXT", "a prompt for the second text encoder (default: the same)"),
        ("--negative-prompt", str, "TEXT", "what to avoid"),
        ("--negative-prompt-2", str, "TEXT", "the same for the second text encoder"),
        ("--height", int, "PIXELS", "a multiple of 8 (default: the model's own)"),
        ("--width", int, "PIXELS", "a multiple of 8 (default: the model's own)"),
        ("--seed", int, "N", "seed of the first picture of a prompt; the next has N + 1 (default: a new one)"),
        ("--num-images", int, "N", "number of pictures of each prompt (default: 1)"),
    )
    how = "Start from a picture instead of noise. The result has its size, rounded down."
    part = f"part of the steps to take, 0 to 1: the more, the less is left of the picture (default: {STRENGTH})"
    add_options(
        command.add_argument_group("image to image", how),
        ("--image", str, "FILE", "the picture to start from, such as photo.png"),
        ("--strength", float, "X", part),
    )
    add_options(
        command.add_argument_group("sampling"),
        ("--steps", int, "N", "denoising steps (default: 30)"),
        ("--guidance-scale", float, "X", "how closely to follow the prompt; none at 1 or less (default: 5)"),
        ("--guidance-rescale", float, "X", "against over-exposure by strong guidance, 0 to 1 (default: 0)"),
        ("--scheduler", str, "NAME", f"{', '.join(SCHEDULERS)} (default: the checkpoint's)"),
        ("--timestep-spacing", str, "NAME", "linspace, leading or trailing (default: the scheduler's)"),
        ("--prediction-type", str, "NAME", "what the U-Net predicts: epsilon, v_prediction or sample"),
        ("--eta", float, "X", "noise that ddim and tcd add in each step, 0 to 1 (default: 0)"),
        ("--clip-skip", int, "N", "number of text encoder layers to skip below the penultimate one"),
    ).add_argument(
        "--karras-sigmas", action=argparse.BooleanOptionalAction, help="space the noise levels by the formula of Karras"
    )
    devices = command.add_argument_group(
        "devices",
        "A picture can be spread over data x cfg x patch devices. --like uses the same ones again: with --emulate, a "
        "picture that eight GPUs made can be made again on one.",
    )
    devices.add_argument("--auto", action="store_true", default=False, help="use all devices that are present")
    exchanged = f"what devices exchange after the warm-up: {', '.join((*MODES, TENSOR))} (default: {Parallel.mode})"
    add_options(
        devices,
        *AXIS_SIZES,
        ("--mode", str, "NAME", exchanged),
        ("--warmup-steps", int, "N", "synchronous steps after the first (default: 4)"),
    )
    emulate = "run virtual devices on a real one: slower, but the same picture"
    devices.add_argument("--emulate", action=argparse.BooleanOptionalAction, help=emulate)

    together = command.add_argument_group(
        "processes",
        "Several processes, on one machine or more, can make a picture together. Start each with the same options; "
        "the first one writes the files.",
    )
    find = "find the other processes by Slurm, Open MPI or Kubernetes"
    together.add_argument("--distributed", action="store_true", default=False, help=find)
    add_options(
        together,
        ("--coordinator", str, "HOST:PORT", "where process 0 can be reached"),
        ("--num-processes", int, "N", "number of processes"),
        ("--process-id", int, "N", "number of this process, from 0"),
    )
    where = "where to write; several pictures get -1, -2, ... (default: a free name made from the prompt)"
    output = add_options(command.add_argument_group("output"), ("--output", Path, "PNG", where))
    output.add_argument("--overwrite", action="store_true", default=False, help="replace an --output that exists")
    amount = output.add_mutually_exclusive_group()
    amount.add_argument("--quiet", action="store_true", default=False, help="print only the pictures' paths")
    verbose = "also print what each device sends, receives and holds, and the seconds of each stage"
    amount.add_argument("--verbose", action="store_true", default=False, help=verbose)


def _generate(options: argparse.Namespace) -> None:
    settings = read_settings(options.like) if "like" in options else Settings()
    settings, image = _start(options, settings.updated(vars(options)))
    prompts: list[str] = options.prompts or ([] if settings.prompt is None else [settings.prompt])
    if not prompts:
        raise DistrijaxError('there is no prompt; give one: distrijax generate "a red circle above a blue square"')
    count = whole_number("--num-images", getattr(options, "num_images", 1), 1)
    _check(settings)
    join_processes(options)
    check_same_everywhere(vars(settings) | {"prompt": prompts, "num_images": count})
    parallel = choose_devices(options, settings, count)
    targets = choose_targets(getattr(options, "output", None), prompts, count, overwrite=options.overwrite)

    start = time.perf_counter()
    pipe = _load(options, settings, parallel, _arguments(settings, count, image))
    seconds = {"loading": time.perf_counter() - start}
    if options.auto and pipe.unet.config.time_cond_proj_dim is not None:  # guidance is an input: there is one branch
        pipe.parallel = choose_devices(options, dataclasses.replace(settings, guidance_scale=1.0), count)
    seed = settings.seed
    if seed is None:
        seed = same_everywhere(int(np.random.SeedSequence().generate_state(1)[0]), "drawing a seed")
    settings = dataclasses.replace(settings, dtype=np.dtype(pipe.dtype).name)
    settings = settings.updated({axis: getattr(pipe.parallel, axis) for axis in ("data", "cfg", "patch", "emulate")})
    verbose = options.verbose and processes.is_first()
    if verbose and parallel.mode != TENSOR:  # there, the compiler decides what is sent
        print(_traffic(pipe, settings, count, image), file=sys.stderr)
    for prompt in prompts:
        seeds = [seed + i for i in range(count)]
        pictures = pipe(prompt, seed=seeds, **_arguments(settings, count, image)).images
        if processes.is_first():
            _save(pictures, prompt, seeds, targets, settings)
    if verbose:
        seconds |= pipe.seconds
        print(", ".join(f"{stage} {spent:.1f} s" for stage, spent in seconds.items()), file=sys.stderr)


def _check(settings: Settings) -> None:
    """Refuse values that no model takes, before one is loaded. The pipeline checks them again, and all others."""
    for name, least, most in (("guidance_scale", None, None), ("guidance_rescale", 0, 1), ("eta", 0, 1)):
        finite_number(f"--{name.replace('_', '-')}", getattr(settings, name), least, most)
    whole_number("--steps", settings.steps, 1)
    if settings.strength is not None:
        finite_number("--strength", settings.strength, 0, 1)
    if settings.seed is not None:
        whole_number("--seed", settings.seed, -(2**63), 2**64 - 1)
    if settings.scheduler is not None:
        scheduler_from_config({}, settings.scheduler)


def _save(
    pictures: list[Image.Image], prompt: str, seeds: list[int], targets: list[Target], settings: Settings
) -> None:
    """Write each picture to the next target; if one cannot be written, write the others and raise its error."""
    problems = []
    for picture, seed in zip(pictures, seeds, strict=True):
        made = {"prompt": prompt, "seed": seed, "height": picture.height, "width": picture.width}
        try:
            print(targets.pop(0).write(png(picture, settings.updated(made))))
        except DistrijaxError as error:
            problems.append(str(error))
    if problems:
        raise DistrijaxError("; ".join(problems))


def _start(options: argparse.Namespace, settings: Settings) -> tuple[Settings, Image.Image | None]:
    """Open the picture to start from, if there is one, and complete the settings that belong to it."""
    if settings.image is None:
        if settings.strength is not None:
            raise DistrijaxError("--strength says how much to change a picture, but there is none; add --image")
        return settings, None
    sizes = [f"--{side}" for side in ("height", "width") if side in options]
    if sizes:
        raise DistrijaxError(
            f"with --image, the size is that of the picture; leave out {' and '.join(sizes)}, or resize the picture"
        )
    path = Path(settings.image)
    again = "image" not in options
    if again and not path.exists():
        raise DistrijaxError(f"{options.like} was made from {path}, which is gone; say where it is with --image")
    image, digest = read_picture(path)
    if again and digest != settings.image_sha256:
        raise DistrijaxError(
            f"{path} has changed since {options.like} was made from it; to use it as it is now, add --image {path}"
        )
    strength = STRENGTH if settings.strength is None else settings.strength
    return dataclasses.replace(settings, image_sha256=digest, strength=strength), image


def _load(options: argparse.Namespace, settings: Settings, parallel: Parallel, arguments: dict[str, Any]) -> Pipeline:
    """Load the pipeline, while what a call with these arguments needs is compiled."""
    names = {"karras_sigmas": "use_karras_sigmas"} | {name: name for name in ("timestep_spacing", "prediction_type")}
    changes = {option: getattr(settings, name) for name, option in names.items()}
    changes = {option: value for option, value in changes.items() if value is not None}
    kind = StableDiffusionXLImg2ImgPipeline if "image" in arguments else StableDiffusionXLPipeline
    pipe: Pipeline = kind.from_pretrained(
        settings.model,
        dtype=jnp.dtype(settings.dtype or default_dtype()),
        parallel=parallel,
        progress=not options.quiet,
        variant=settings.variant,
        config=settings.config,
        unet=settings.unet,
        vae=settings.vae,
        tokenizer=settings.tokenizer,
        scheduler=settings.scheduler,
        compile=None if options.auto or changes else arguments,  # with --auto, the model decides about the branches
    )
    pipe.set_progress_bar_config(disable=options.quiet)
    if changes:
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, **changes)
    return pipe


def _arguments(settings: Settings, count: int, image: Image.Image | None) -> dict[str, Any]:
    """Return the arguments of a call for `count` pictures, but for the prompt and the seeds."""
    names = ["prompt_2", "negative_prompt", "negative_prompt_2", "guidance_scale", "guidance_rescale", "eta"]
    names += ["clip_skip", *(("height", "width") if image is None else ("strength",))]
    arguments = {name: getattr(settings, name) for name in names} | ({} if image is None else {"image": image})
    return arguments | {"num_inference_steps": settings.steps, "num_images_per_prompt": count}


def _traffic(pipe: Pipeline, settings: Settings, pictures: int, image: Image.Image | None) -> Traffic:
    """Count what each device sends in a step of such a picture."""
    height, width = (settings.height, settings.width) if image is None else (image.height, image.width)
    scale, config = pipe.vae_scale_factor, pipe.unet.config
    return count_traffic(
        config,
        pipe.parallel,
        pipe.dtype,
        height=None if height is None else height // scale,
        width=None if width is None else width // scale,
        guided=settings.guidance_scale > 1 and config.time_cond_proj_dim is None,
        pictures=pictures,
        scheduler=pipe.scheduler,
    )

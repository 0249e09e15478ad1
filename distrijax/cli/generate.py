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

from distrijax.checks import whole_number
from distrijax.cli.devices import choose_devices, join_processes
from distrijax.cli.options import DTYPES, Commands, add_axes, add_parts, default_dtype
from distrijax.cli.pictures import read_picture, read_settings, write_picture
from distrijax.cli.settings import Settings
from distrijax.cli.targets import choose_targets
from distrijax.demo import MODEL
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import MODES, TENSOR
from distrijax.pipelines.image_to_image import StableDiffusionXLImg2ImgPipeline
from distrijax.pipelines.text_to_image import StableDiffusionXLPipeline
from distrijax.runtime import processes
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

    model = command.add_argument_group("model")
    model.add_argument(
        "--model",
        metavar="SOURCE",
        help="a converted checkpoint, a diffusers folder, a .safetensors file, or a hub id (default: demo)",
    )
    add_parts(model)
    model.add_argument(
        "--dtype", choices=DTYPES, help="dtype of weights and arithmetic (default: bfloat16 on a GPU, float32 on a CPU)"
    )

    picture = command.add_argument_group("picture")
    picture.add_argument("--prompt-2", metavar="TEXT", help="a prompt for the second text encoder (default: the same)")
    picture.add_argument("--negative-prompt", metavar="TEXT", help="what to avoid")
    picture.add_argument("--negative-prompt-2", metavar="TEXT", help="the same for the second text encoder")
    picture.add_argument("--height", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's own)")
    picture.add_argument("--width", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's own)")
    picture.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="seed of the first picture of a prompt; the next has N + 1 (default: a new one)",
    )
    picture.add_argument("--num-images", type=int, metavar="N", help="number of pictures of each prompt (default: 1)")

    start = command.add_argument_group(
        "image to image", "Start from a picture instead of noise. The result has its size, rounded down."
    )
    start.add_argument("--image", metavar="FILE", help="the picture to start from, such as photo.png")
    start.add_argument(
        "--strength",
        type=float,
        metavar="X",
        help=f"part of the steps to take, 0 to 1: the more, the less is left of the picture (default: {STRENGTH})",
    )

    sampling = command.add_argument_group("sampling")
    sampling.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: 30)")
    sampling.add_argument(
        "--guidance-scale",
        type=float,
        metavar="X",
        help="how closely to follow the prompt; 1 or less turns guidance off (default: 5)",
    )
    sampling.add_argument(
        "--guidance-rescale",
        type=float,
        metavar="X",
        help="against over-exposure by strong guidance, 0 to 1 (default: 0)",
    )
    sampling.add_argument(
        "--scheduler",
        metavar="NAME",
        help="ddim, euler, euler_ancestral, dpmsolver++, lcm, tcd or unipc (default: the checkpoint's)",
    )
    sampling.add_argument(
        "--eta", type=float, metavar="X", help="noise that ddim and tcd add in each step, 0 to 1 (default: 0)"
    )
    sampling.add_argument(
        "--clip-skip", type=int, metavar="N", help="number of text encoder layers to skip below the penultimate one"
    )

    devices = command.add_argument_group(
        "devices",
        "A picture can be spread over data x cfg x patch devices. --like uses the same ones again: with --emulate, a "
        "picture that eight GPUs made can be made again on one.",
    )
    devices.add_argument("--auto", action="store_true", default=False, help="use all devices that are present")
    add_axes(devices)
    devices.add_argument(
        "--mode",
        metavar="NAME",
        help=f"what devices exchange after the warm-up: {', '.join((*MODES, TENSOR))} (default: {Parallel.mode})",
    )
    devices.add_argument("--warmup-steps", type=int, metavar="N", help="synchronous steps after the first (default: 4)")
    devices.add_argument(
        "--emulate",
        action=argparse.BooleanOptionalAction,
        help="run virtual devices on a real one: slower, but the same picture",
    )

    together = command.add_argument_group(
        "processes",
        "Several processes, on one machine or more, can make a picture together. Start each with the same options; "
        "the first one writes the files.",
    )
    together.add_argument(
        "--distributed",
        action="store_true",
        default=False,
        help="find the other processes by Slurm, Open MPI or Kubernetes",
    )
    together.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached")
    together.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    together.add_argument("--process-id", type=int, metavar="N", help="number of this process, from 0")

    output = command.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        metavar="PNG",
        help="where to write; several pictures get -1, -2, ... (default: a free name made from the prompt)",
    )
    output.add_argument("--overwrite", action="store_true", default=False, help="replace an --output that exists")
    amount = output.add_mutually_exclusive_group()
    amount.add_argument("--quiet", action="store_true", default=False, help="print only the pictures' paths")
    amount.add_argument(
        "--verbose",
        action="store_true",
        default=False,
        help="also print what each device sends, receives and holds, and the seconds of each stage",
    )


def _generate(options: argparse.Namespace) -> None:
    settings = read_settings(options.like) if "like" in options else Settings()
    settings, image = _start(options, settings.updated(vars(options)))
    prompts: list[str] = options.prompts or ([] if settings.prompt is None else [settings.prompt])
    if not prompts:
        raise DistrijaxError('there is no prompt; give one: distrijax generate "a red circle above a blue square"')
    count = whole_number("--num-images", getattr(options, "num_images", 1), 1)
    join_processes(options)
    parallel = choose_devices(options, settings, count)
    targets = choose_targets(getattr(options, "output", None), prompts, count, overwrite=options.overwrite)

    start = time.perf_counter()
    pipe = _load(options, settings, parallel, _arguments(settings, count, image))
    seconds = {"loading": time.perf_counter() - start}
    if options.auto and pipe.unet.config.time_cond_proj_dim is not None:  # guidance is an input: there is one branch
        pipe.parallel = choose_devices(options, dataclasses.replace(settings, guidance_scale=1.0), count)
    seed = settings.seed
    if seed is None:
        seed = processes.same_everywhere(int(np.random.SeedSequence().generate_state(1)[0]))
    settings = dataclasses.replace(settings, dtype=np.dtype(pipe.dtype).name)
    settings = settings.updated({axis: getattr(pipe.parallel, axis) for axis in ("data", "cfg", "patch", "emulate")})
    verbose = options.verbose and processes.is_first()
    if verbose and parallel.mode != TENSOR:  # there, the compiler decides what is sent
        print(_traffic(pipe, settings, count, image), file=sys.stderr)
    for prompt in prompts:
        seeds = [seed + i for i in range(count)]
        pictures = pipe(prompt, seed=seeds, **_arguments(settings, count, image)).images
        for picture, own in zip(pictures, seeds, strict=True):
            if processes.is_first():
                made = {"prompt": prompt, "seed": own, "height": picture.height, "width": picture.width}
                target = targets.pop(0)
                write_picture(picture, target, settings.updated(made), overwrite=options.overwrite)
                print(target)
    if verbose:
        seconds |= pipe.seconds
        print(", ".join(f"{stage} {spent:.1f} s" for stage, spent in seconds.items()), file=sys.stderr)


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
    kind = StableDiffusionXLImg2ImgPipeline if "image" in arguments else StableDiffusionXLPipeline
    pipe: Pipeline = kind.from_pretrained(
        MODEL if settings.model == "demo" else settings.model,
        dtype=jnp.dtype(settings.dtype or default_dtype()),
        parallel=parallel,
        progress=not options.quiet,
        variant=settings.variant,
        vae=settings.vae,
        tokenizer=settings.tokenizer,
        scheduler=settings.scheduler,
        compile=None if options.auto else arguments,  # the model decides whether there are two branches to divide
    )
    pipe.set_progress_bar_config(disable=options.quiet)
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

"""`distrijax generate`: prompts to pictures."""

import argparse
import dataclasses
import sys
import time
from typing import Any

import numpy as np
from PIL import Image

from distrijax.checks import finite_number, whole_number
from distrijax.cli.adapters import chosen_adapters, load_adapters
from distrijax.cli.devices import choose_devices, join_processes, with_mode
from distrijax.cli.embeddings import load_embeddings, with_digests
from distrijax.cli.generate_options import add_generate_options
from distrijax.cli.options import Commands
from distrijax.cli.pictures import png, read_settings
from distrijax.cli.previews import preview_arguments
from distrijax.cli.prompt_file import TEXTS
from distrijax.cli.prompt_run import make_all
from distrijax.cli.refiner import follow, loading_options, refiner_arguments, with_refiner
from distrijax.cli.settings import Settings, parse_timesteps
from distrijax.cli.start import pictures_to_start_from
from distrijax.cli.targets import Target, choose_targets
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import TENSOR
from distrijax.pipelines.image_to_image import StableDiffusionXLImg2ImgPipeline
from distrijax.pipelines.inpaint import StableDiffusionXLInpaintPipeline
from distrijax.pipelines.text_to_image import StableDiffusionXLPipeline
from distrijax.runtime import processes
from distrijax.runtime.agreement import check_same_everywhere, same_everywhere
from distrijax.schedulers import named
from distrijax.text.prompt import PromptInputs
from distrijax.tools.traffic import Traffic, count_traffic

Pipeline = StableDiffusionXLPipeline | StableDiffusionXLImg2ImgPipeline | StableDiffusionXLInpaintPipeline


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
    add_generate_options(command)


def _generate(options: argparse.Namespace) -> None:
    settings = read_settings(options.like) if "like" in options else Settings()
    if "recipe" in options:
        settings = settings.with_recipe(options.recipe)
    settings = chosen_adapters(options, with_mode(options, settings.updated(vars(options))))
    settings, pictures = pictures_to_start_from(options, settings)
    settings = with_digests(options, settings)
    if "prompt_file" in options:
        make_all(options, settings, _arguments(settings, 1, pictures), _check, _load)
        return
    if "batch_size" in options:
        raise DistrijaxError("--batch-size is for the pictures of a file; add --prompts FILE, or use --num-images")
    prompts: list[str] = options.prompts or ([] if settings.prompt is None else [settings.prompt])
    if not prompts:
        raise DistrijaxError('there is no prompt; give one: distrijax generate "a red circle above a blue square"')
    count = whole_number("--num-images", getattr(options, "num_images", 1), 1)
    _check(settings)
    for prompt in prompts:
        PromptInputs(**{name: getattr(settings, name) for name in TEXTS} | {"prompt": prompt},
                     prompt_syntax=settings.prompt_syntax)  # fmt: skip
    settings = with_refiner(options, settings)
    join_processes(options)
    check_same_everywhere(vars(settings) | {"prompt": prompts, "num_images": count})
    parallel = choose_devices(options, settings, count)
    targets = choose_targets(getattr(options, "output", None), prompts, count, overwrite=options.overwrite)
    arguments = _arguments(settings, count, pictures) | preview_arguments(options, settings, targets)

    start = time.perf_counter()
    arguments |= refiner_arguments(options, settings, parallel)
    refiner = arguments.get("refiner")
    pipe = _load(options, settings, parallel, arguments)
    seconds = {"loading": time.perf_counter() - start}
    if options.auto and pipe.unet.config.time_cond_proj_dim is not None:  # guidance is an input: there is one branch
        pipe.parallel = choose_devices(options, dataclasses.replace(settings, guidance_scale=1.0), count)
    follow(refiner, pipe)
    seed = settings.seed
    if seed is None:
        seed = same_everywhere(int(np.random.SeedSequence().generate_state(1)[0]), "drawing a seed")
    settings = dataclasses.replace(settings, dtype=np.dtype(pipe.dtype).name)
    settings = settings.updated({axis: getattr(pipe.parallel, axis) for axis in ("data", "cfg", "patch", "emulate")})
    verbose = options.verbose and processes.is_first()
    if verbose and parallel.mode != TENSOR:  # there, the compiler decides what is sent
        print(_traffic(pipe, settings, count, pictures), file=sys.stderr)
    for prompt in prompts:
        seeds = [seed + i for i in range(count)]
        made, size = _make(pipe, settings, {"prompt": prompt, "seed": seeds} | arguments)
        if processes.is_first():
            _save(made, prompt, seeds, targets, settings.updated(size))
    if verbose:
        seconds |= pipe.seconds
        for stage, spent in ({} if refiner is None else refiner.seconds).items():
            seconds[stage] += spent
        print(", ".join(f"{stage} {spent:.1f} s" for stage, spent in seconds.items()), file=sys.stderr)


def _check(settings: Settings) -> None:
    """Refuse values that no model takes, before one is loaded. The pipeline checks them again, and all others."""
    for name, least, most in (("guidance_scale", None, None), ("guidance_rescale", 0, 1), ("eta", 0, 1)):
        finite_number(f"--{name.replace('_', '-')}", getattr(settings, name), least, most)
    whole_number("--steps", settings.steps, 1)
    if settings.strength is not None:
        finite_number("--strength", settings.strength, 0, 1)
    if settings.padding_mask_crop is not None:
        whole_number("--padding-mask-crop", settings.padding_mask_crop)
    if settings.seed is not None:
        whole_number("--seed", settings.seed, -(2**63), 2**64 - 1)
    parse_timesteps(settings.timesteps)
    if settings.scheduler is not None:
        named(settings.scheduler)


def _make(pipe: Pipeline, settings: Settings, call: dict[str, Any]) -> tuple[list[Image.Image], dict[str, Any]]:
    """Make the pictures of a prompt; return them, and settings to record, such as the size before enlarging."""
    enlarges = settings.upscale is not None
    changed: dict[str, Any] = {}
    if enlarges and "image" in call:
        made = [call["image"]]
    else:
        output = pipe(**call)
        made, changed["mode"] = output.images, output.mode
    if settings.mask is None:
        changed |= {"height": made[0].height, "width": made[0].width}
    if enlarges:
        others = {name: x for name, x in call.items() if name not in ("image", "height", "width")}
        method = settings.upscale_method or "lanczos"
        others |= {"strength": settings.strength, "method": method, "factor": settings.upscale}
        before = pipe.parallel
        pipe.parallel = dataclasses.replace(before, mode=settings.upscale_mode or before.mode)
        output = pipe.upscale(made, **others)
        pipe.parallel, made = before, output.images
        changed.setdefault("mode", output.mode)
        changed["upscale_mode"] = None if output.mode == changed["mode"] else output.mode
    return made, changed


def _save(
    pictures: list[Image.Image], prompt: str, seeds: list[int], targets: list[Target], settings: Settings
) -> None:
    """Write each picture to the next target; if one cannot be written, write the others and raise its error."""
    problems = []
    for picture, seed in zip(pictures, seeds, strict=True):
        try:
            print(targets.pop(0).write(png(picture, settings.updated({"prompt": prompt, "seed": seed}))))
        except DistrijaxError as error:
            problems.append(str(error))
    if problems:
        raise DistrijaxError("; ".join(problems))


def _load(options: argparse.Namespace, settings: Settings, parallel: Parallel, arguments: dict[str, Any]) -> Pipeline:
    """Load the pipeline, while what a call with these arguments needs is compiled."""
    names = {"karras_sigmas": "use_karras_sigmas"} | {name: name for name in ("timestep_spacing", "prediction_type")}
    changes = {option: getattr(settings, name) for name, option in names.items()}
    changes = {option: value for option, value in changes.items() if value is not None}
    kind: type[Pipeline] = StableDiffusionXLImg2ImgPipeline if "image" in arguments else StableDiffusionXLPipeline
    if "mask_image" in arguments:
        kind = StableDiffusionXLInpaintPipeline
    pipe: Pipeline = kind.from_pretrained(
        settings.model,
        **loading_options(options, settings, parallel),
        config=settings.config,
        unet=settings.unet,
        vae=settings.vae,
        # With --auto, the model decides about the branches; an image that is enlarged has another size.
        compile=None if options.auto or changes or (settings.upscale and "image" in arguments) else arguments,
    )
    pipe.set_progress_bar_config(disable=options.quiet)
    if changes:
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, **changes)
    load_embeddings(pipe, settings)
    load_adapters(pipe, settings)
    return pipe


def _arguments(settings: Settings, count: int, pictures: dict[str, Image.Image]) -> dict[str, Any]:
    """Return the arguments of a call for `count` pictures, but for the prompt and the seeds."""
    names = ["prompt_2", "negative_prompt", "negative_prompt_2", "guidance_scale", "guidance_rescale", "eta"]
    names += ["clip_skip", "prompt_syntax"]
    names += ["strength"] if pictures else []
    names += ["height", "width"] if "mask_image" in pictures or not pictures else []
    names += ["padding_mask_crop"] if "mask_image" in pictures else []
    arguments = {name: getattr(settings, name) for name in names} | pictures
    arguments |= {"num_inference_steps": settings.steps, "num_images_per_prompt": count}
    return arguments | {"timesteps": parse_timesteps(settings.timesteps)}


def _traffic(pipe: Pipeline, settings: Settings, count: int, pictures: dict[str, Image.Image]) -> Traffic:
    """Count what each device sends in a step of such a picture."""
    scale, config = pipe.vae_scale_factor, pipe.unet.config
    height, width = settings.height, settings.width
    if "image" in pictures and "mask_image" not in pictures:
        width, height = pictures["image"].size
    return count_traffic(
        config,
        pipe.parallel,
        pipe.dtype,
        height=None if height is None else height // scale,
        width=None if width is None else width // scale,
        guided=settings.guidance_scale > 1 and config.time_cond_proj_dim is None,
        pictures=count,
        scheduler=pipe.scheduler,
    )

"""`distrijax generate`: prompts to pictures."""

import argparse
import dataclasses
import json
import os
import re
import sys
import time
from math import gcd
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from distrijax import __version__
from distrijax.cli.options import DTYPES
from distrijax.demo import MODEL
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import MODES, TENSOR
from distrijax.pipelines.text_to_image import StableDiffusionXLPipeline
from distrijax.runtime import processes
from distrijax.schedulers import scheduler_from_config
from distrijax.tools.traffic import Traffic, count_traffic

METADATA = "distrijax"  # the PNG text chunk that holds a picture's settings, as JSON
NUMBERS = ("data", "cfg", "patch")
DEVICES = (*NUMBERS, "mode", "warmup_steps", "emulate")
PROCESSES = ("coordinator", "num_processes", "process_id")

# What a picture's settings are where neither the command line nor --like says otherwise.
DEFAULTS: dict[str, Any] = {
    "model": "demo",
    "variant": None,
    "vae": None,
    "tokenizer": None,
    "dtype": None,
    "scheduler": None,
    "prompt_2": None,
    "negative_prompt": None,
    "negative_prompt_2": None,
    "height": None,
    "width": None,
    "steps": 30,
    "guidance_scale": 5.0,
    "guidance_rescale": 0.0,
    "eta": 0.0,
    "clip_skip": None,
    "seed": None,
    **{field.name: field.default for field in dataclasses.fields(Parallel) if field.name in DEVICES},
}


def add(commands: Any) -> None:
    command = commands.add_parser(
        "generate",
        help="make pictures from prompts",
        description="Make a picture of each prompt, as PNG with its settings inside. Without --model, the built-in "
        "demo model draws coloured shapes. The first run of a size compiles it, later ones start at once.",
        argument_default=argparse.SUPPRESS,  # so that what was given can be told from what is left to --like
    )
    command.set_defaults(run=_generate)
    command.add_argument("prompts", nargs="*", metavar="PROMPT", default=[], help="what to draw; each makes pictures")
    command.add_argument("--like", metavar="PNG", type=Path, help="take the settings of a picture made before")

    model = command.add_argument_group("model")
    model.add_argument(
        "--model",
        metavar="SOURCE",
        help="a converted checkpoint, a diffusers folder, a .safetensors file, or a hub id (default: demo)",
    )
    model.add_argument(
        "--variant", metavar="NAME", help='of the files of weights in a folder or on the hub, e.g. "fp16"'
    )
    model.add_argument("--vae", metavar="SOURCE", help="an autoencoder in place of the checkpoint's own")
    model.add_argument("--tokenizer", metavar="SOURCE", help="CLIP's vocabulary, for a .safetensors file")
    model.add_argument(
        "--dtype", choices=DTYPES, help="of weights and arithmetic (default: bfloat16 on a GPU, float32 on a CPU)"
    )

    picture = command.add_argument_group("picture")
    picture.add_argument("--prompt-2", metavar="TEXT", help="for the second text encoder (default: the prompt)")
    picture.add_argument("--negative-prompt", metavar="TEXT", help="what to stay away from")
    picture.add_argument("--negative-prompt-2", metavar="TEXT", help="the same for the second text encoder")
    picture.add_argument("--height", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's own)")
    picture.add_argument("--width", type=int, metavar="PIXELS", help="a multiple of 8 (default: the model's own)")
    picture.add_argument("--seed", type=int, metavar="N", help="of the first picture; then N + 1, ... (default: new)")
    picture.add_argument("--num-images", type=int, metavar="N", help="pictures of each prompt (default: 1)")

    sampling = command.add_argument_group("sampling")
    sampling.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: 30)")
    sampling.add_argument("--guidance-scale", type=float, metavar="X", help="up to 1: no guidance (default: 5)")
    sampling.add_argument("--guidance-rescale", type=float, metavar="X", help="0 to 1 (default: 0)")
    sampling.add_argument(
        "--scheduler",
        metavar="NAME",
        help="ddim, euler, euler_ancestral, dpmsolver++, lcm, tcd or unipc (default: the checkpoint's)",
    )
    sampling.add_argument("--eta", type=float, metavar="X", help="noise of ddim and tcd, 0 to 1 (default: 0)")
    sampling.add_argument("--clip-skip", type=int, metavar="N", help="layers of the text encoders to leave out")

    devices = command.add_argument_group(
        "devices",
        "A picture can be spread over data x cfg x patch devices. --like restores this too: with --emulate, a picture "
        "that eight GPUs made can be made again on one.",
    )
    devices.add_argument("--auto", action="store_true", default=False, help="use all devices that are present")
    devices.add_argument("--patch", type=int, metavar="N", help="devices that share a picture's rows (default: 1)")
    devices.add_argument(
        "--cfg", type=int, metavar="N", help="2: either guidance branch has its own devices (default: 1)"
    )
    devices.add_argument(
        "--data", type=int, metavar="N", help="groups of devices that make different pictures (default: 1)"
    )
    devices.add_argument(
        "--mode",
        metavar="NAME",
        help=f"what devices exchange after the warm-up: {', '.join((*MODES, TENSOR))} (default: {Parallel.mode})",
    )
    devices.add_argument(
        "--warmup-steps",
        type=int,
        metavar="N",
        help="steps besides the first that wait for the other devices (default: 4)",
    )
    devices.add_argument(
        "--emulate",
        action=argparse.BooleanOptionalAction,
        help="run so many virtual devices on one real one: slower, the same picture",
    )

    together = command.add_argument_group(
        "processes", "Of several, on one machine or more, each started with the same options; the first one writes."
    )
    together.add_argument(
        "--distributed",
        action="store_true",
        default=False,
        help="find the other processes by Slurm, Open MPI or Kubernetes",
    )
    together.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached")
    together.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    together.add_argument("--process-id", type=int, metavar="N", help="which one this is, from 0")

    output = command.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        metavar="PNG",
        help="where to write; several pictures get -1, -2, ... (default: a free name made from the prompt)",
    )
    output.add_argument("--overwrite", action="store_true", default=False, help="replace an --output that exists")
    said = output.add_mutually_exclusive_group()
    said.add_argument("--quiet", action="store_true", default=False, help="no progress, only the pictures' paths")
    said.add_argument(
        "--verbose",
        action="store_true",
        default=False,
        help="also what each device sends, receives and holds, and the seconds of each part",
    )


def _generate(options: argparse.Namespace) -> None:
    given = vars(options)
    like = _settings_of(options.like) if "like" in given else {}
    settings = DEFAULTS | {k: v for k, v in like.items() if k in DEFAULTS}
    settings |= {k: v for k, v in given.items() if k in DEFAULTS}
    prompts = options.prompts or ([like["prompt"]] if "prompt" in like else [])
    if not prompts:
        raise DistrijaxError('there is no prompt; give one: distrijax generate "a red circle above a blue square"')
    count = given.get("num_images", 1)
    if count < 1:
        raise DistrijaxError(f"--num-images is {count}; it must be at least 1")
    _join(given)
    parallel = _parallel(given, settings, count)
    targets = _targets_of_first(given.get("output"), prompts, count, options.overwrite)

    start = time.perf_counter()
    pipe = StableDiffusionXLPipeline.from_pretrained(
        _source(settings["model"]),
        dtype=_dtype(settings),
        parallel=parallel,
        progress=not options.quiet and processes.is_first(),
        **{name: settings[name] for name in ("variant", "vae", "tokenizer")},
    )
    loading = time.perf_counter() - start
    pipe.set_progress_bar_config(disable=options.quiet)
    if options.auto and pipe.unet.config.time_cond_proj_dim is not None:  # guidance is an input: there is one branch
        pipe.parallel = _parallel(given, settings | {"guidance_scale": 1.0}, count)
    settings |= {name: getattr(pipe.parallel, name) for name in DEVICES}
    if settings["scheduler"] is not None:
        pipe.scheduler = scheduler_from_config(pipe.scheduler.config, settings["scheduler"])
    if settings["seed"] is None:
        settings["seed"] = processes.same_everywhere(int(np.random.SeedSequence().generate_state(1)[0]))
    settings["dtype"] = np.dtype(pipe.dtype).name
    passed = ["prompt_2", "negative_prompt", "negative_prompt_2", "height", "width"]
    passed += ["guidance_scale", "guidance_rescale", "eta", "clip_skip"]
    if options.verbose and processes.is_first() and parallel.mode != "tensor":  # there, traffic is up to the compiler
        print(_traffic(pipe, settings, count), file=sys.stderr)
    for prompt in prompts:
        seeds = [settings["seed"] + i for i in range(count)]
        images = pipe(
            prompt,
            num_inference_steps=settings["steps"],
            num_images_per_prompt=count,
            seed=seeds,
            **{name: settings[name] for name in passed},
        ).images
        for image, seed in zip(images, seeds, strict=True):
            size = {"height": image.height, "width": image.width}
            made = {"version": __version__, "prompt": prompt, **settings, **size, "seed": seed}
            if processes.is_first():
                target = targets.pop(0)
                _write(image, target, made, options.overwrite)
                print(target)
    if options.verbose and processes.is_first():
        spent = {"loading": loading, **pipe.seconds}
        print(", ".join(f"{part} {seconds:.1f} s" for part, seconds in spent.items()), file=sys.stderr)


def _traffic(pipe: StableDiffusionXLPipeline, settings: dict[str, Any], pictures: int) -> Traffic:
    """Count what each device sends in a step of such a picture."""
    scale, config = pipe.vae.config.scale_factor, pipe.unet.config
    height, width = (None if settings[name] is None else settings[name] // scale for name in ("height", "width"))
    guided = settings["guidance_scale"] > 1 and config.time_cond_proj_dim is None
    return count_traffic(
        config,
        pipe.parallel,
        pipe.dtype,
        height=height,
        width=width,
        guided=guided,
        pictures=pictures,
        scheduler=pipe.scheduler,
    )


def _join(given: dict[str, Any]) -> None:
    """Join the other processes, if there are any: before anything asks JAX for its devices."""
    missing = ["--" + name.replace("_", "-") for name in PROCESSES if name not in given]
    if given["distributed"]:
        if len(missing) < len(PROCESSES):
            raise DistrijaxError(
                "--distributed finds the other processes by itself; leave out --coordinator and others"
            )
        processes.initialize()
    elif not missing:
        processes.initialize(*(given[name] for name in PROCESSES))
    elif len(missing) < len(PROCESSES):
        raise DistrijaxError(f"of several processes, each has to be told all; {' and '.join(missing)}: missing")


def _parallel(given: dict[str, Any], settings: dict[str, Any], count: int) -> Parallel:
    """The devices that make `count` pictures at a time."""
    scale = settings["guidance_scale"]
    guided = not isinstance(scale, int | float) or scale > 1  # what is no number, the pipeline refuses
    if given["auto"]:
        named = [f"--{name}" for name in (*NUMBERS, "emulate") if name in given]
        if named:
            raise DistrijaxError(
                f"--auto chooses among all devices present; leave out {' and '.join(named)}, or --auto"
            )
        auto = Parallel.auto(guided=guided, pictures=count)
        return dataclasses.replace(auto, **{name: settings[name] for name in ("mode", "warmup_steps")})
    chosen = {name: settings[name] for name in DEVICES}
    if "data" not in given and isinstance(chosen["data"], int):
        # Of --like: a picture made beside others can be made again without them.
        chosen["data"] = gcd(chosen["data"], count)
    parallel = Parallel(**chosen)
    # The pipeline says the same, but only once it is loaded.
    parallel.check(pictures=count, guided=guided, because=f"guidance_scale is {scale}")
    return parallel


def _targets_of_first(*choices: Any) -> list[Path]:
    """In the first process, a path for every picture. If it finds none, all stop: the others would wait for it."""
    targets, problem = [], None
    if processes.is_first():
        try:
            targets = _targets(*choices)
        except DistrijaxError as error:
            problem = error
    if not processes.same_everywhere(problem is None):
        raise problem or DistrijaxError("the first process cannot write its pictures; it says why")
    return targets


def _source(model: str) -> str | Path:
    return MODEL if model == "demo" else model


def _dtype(settings: dict[str, Any]) -> Any:
    fast = "bfloat16" if jax.default_backend() == "gpu" else "float32"
    return jnp.dtype(settings["dtype"] or fast)


def _settings_of(picture: Path) -> dict[str, Any]:
    """The settings that a picture carries."""
    try:
        with Image.open(picture) as image:
            text = image.info.get(METADATA)
    except FileNotFoundError:
        raise DistrijaxError(f"{picture}: there is no such picture") from None
    except (UnidentifiedImageError, OSError) as error:
        raise DistrijaxError(f"{picture}: cannot be read as a picture ({error})") from None
    try:
        settings = json.loads(text or "")
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise DistrijaxError(f"{picture}: carries no settings; only PNGs that `distrijax generate` made do")
    return settings


def _targets(output: Path | None, prompts: list[str], count: int, overwrite: bool) -> list[Path]:
    """A path for every picture, none of which exists unless it may be overwritten."""
    if output is None:
        return [path for prompt in prompts for path in _free(_slug(prompt), prompts.count(prompt) * count)]
    if output.suffix.lower() != ".png":
        raise DistrijaxError(f"--output is {str(output)!r}; it must end in .png")
    if not output.parent.is_dir():
        raise DistrijaxError(f"--output: there is no folder {output.parent}; make it first")
    total = len(prompts) * count
    paths = [output] if total == 1 else [output.with_stem(f"{output.stem}-{i + 1}") for i in range(total)]
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        raise DistrijaxError(f"{there[0]} exists; choose another --output, or say --overwrite")
    return paths


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].rstrip("-") or "picture"


def _free(name: str, count: int) -> list[Path]:
    """`name.png`, `name-2.png`, ...: the first ones that do not exist."""
    paths: list[Path] = []
    number = 1
    while len(paths) < count:
        path = Path(f"{name}.png" if number == 1 else f"{name}-{number}.png")
        number += 1
        if not path.exists():
            paths.append(path)
    return paths


def _write(image: Any, target: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """The picture appears whole or not at all."""
    info = PngInfo()
    info.add_itxt(METADATA, json.dumps(settings, ensure_ascii=False))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        image.save(partial, format="PNG", pnginfo=info)
        if not overwrite and target.exists():
            raise DistrijaxError(f"{target} exists by now; nothing is overwritten without --overwrite")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)

"""The options of `distrijax generate`, group by group."""

import argparse
from pathlib import Path

from distrijax.checks import DTYPES
from distrijax.cli.adapters import add_adapters
from distrijax.cli.options import AXIS_SIZES, MAX_WAITING, PARTS, SOURCES, add_options
from distrijax.cli.refiner import SWITCH_AT
from distrijax.cli.start import MASKED_STRENGTH, STRENGTH, UPSCALED_STRENGTH
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import AUTO, MODES, TENSOR
from distrijax.schedulers import RECIPES


def add_generate_options(command: argparse.ArgumentParser) -> None:
    """Add the prompts and all options. Those that make a picture what it is have no default here: see `Settings`."""
    command.add_argument(
        "prompts", nargs="*", metavar="PROMPT", default=[], help="what to draw; each prompt makes a picture of its own"
    )
    command.add_argument("--like", metavar="PNG", type=Path, help="use the settings of a picture made earlier")

    model = add_options(
        command.add_argument_group("model"),
        ("--model", str, "SOURCE", f"{SOURCES} (default: demo)"),
        *PARTS,
    )
    token = (
        "textual inversion: a .safetensors file or demo, and what to write in the prompt; can be given several times"
    )
    model.add_argument("--embedding", action="append", metavar="FILE[:TOKEN]", help=token)
    model.add_argument("--dtype", choices=DTYPES, help="(default: bfloat16 on a GPU, float32 on a CPU)")
    add_options(
        command.add_argument_group("picture"),
        ("--prompt-2", str, "TEXT", "a prompt for the second text encoder (default: the same)"),
        ("--negative-prompt", str, "TEXT", "what to avoid"),
        ("--negative-prompt-2", str, "TEXT", "the same for the second text encoder"),
        ("--prompt-syntax", str, "NAME", "plain, or with weights and of any length: a1111 or compel (default: plain)"),
        ("--height", int, "PIXELS", "a multiple of 8 (default: the model's own)"),
        ("--width", int, "PIXELS", "a multiple of 8 (default: the model's own)"),
        ("--seed", int, "N", "seed of the first picture of a prompt; the next has N + 1 (default: a new one)"),
        ("--num-images", int, "N", "number of pictures of each prompt (default: 1)"),
    )
    add_adapters(command)
    how = "Start from a picture instead of noise. The result has its size, rounded down."
    part = "part of the steps to take, 0 to 1: the more, the less is left of the picture "
    part += f"(default: {STRENGTH}, with a mask {MASKED_STRENGTH})"
    crop = "paint only what the mask shows, with so much around it, at the size of --height and --width (default: the "
    crop += "model's own), and put it back; the other pixels stay as they are"
    add_options(
        command.add_argument_group("image to image", how),
        ("--image", str, "FILE", "the picture to start from, such as photo.png"),
        ("--mask", str, "FILE", "a picture that is white where to paint (inpainting), of any size"),
        ("--padding-mask-crop", int, "PIXELS", crop),
        ("--strength", float, "X", part),
    )
    add_options(
        command.add_argument_group("upscaling", "Enlarge the picture, and draw it again at the large size in part."),
        ("--upscale", float, "X", f"how many times as high and wide; --strength is {UPSCALED_STRENGTH} by default"),
        ("--upscale-method", str, "NAME", "enlarge pixels (lanczos, the default) or latents (latent: strength 0.5)"),
    )
    second = "Another model of the same latents, such as SDXL's refiner, takes the last steps."
    add_options(
        command.add_argument_group("refiner", second),
        ("--refiner", str, "SOURCE", "the model that takes the last steps"),
        ("--switch-at", float, "X", f"part of the noise schedule after which it does, 0 to 1 (default: {SWITCH_AT})"),
    ).add_argument("--offload", action="store_true", default=False, help="keep one U-Net on the devices at a time")
    add_options(
        command.add_argument_group("sampling"),
        ("--steps", int, "N", "denoising steps (default: 30)"),
        ("--guidance-scale", float, "X", "how closely to follow the prompt; none at 1 or less (default: 5)"),
        ("--guidance-rescale", float, "X", "against over-exposure by strong guidance, 0 to 1 (default: 0)"),
        ("--recipe", str, "NAME", f"settings of a few-step model, which other options replace: {', '.join(RECIPES)}"),
        ("--scheduler", str, "NAME", 'as A1111, ComfyUI or diffusers call it, such as "DPM++ 2M Karras" or euler'),
        ("--timesteps", str, "LIST", "training timesteps such as 999,749,499,249; or ays, for --steps of these"),
        ("--timestep-spacing", str, "NAME", "linspace, leading or trailing (default: the scheduler's)"),
        ("--prediction-type", str, "NAME", "what the U-Net predicts: epsilon, v_prediction or sample"),
        ("--eta", float, "X", "noise that ddim and tcd add in each step, 0 to 1 (default: 0)"),
        ("--clip-skip", int, "N", "number of text encoder layers to skip below the penultimate one"),
        ("--karras-sigmas", bool, "", "space the noise levels by the formula of Karras"),
    )
    devices = command.add_argument_group(
        "devices",
        "A picture can be spread over data x cfg x patch devices. --like uses the same ones again: with --emulate, a "
        "picture that eight GPUs made can be made again on one.",
    )
    devices.add_argument("--auto", action="store_true", default=False, help="use all devices that are present")
    exchanged = (
        f"what devices exchange after the warm-up: {', '.join((*MODES, TENSOR, AUTO))} (default: {Parallel.mode})"
    )
    add_options(
        devices,
        *AXIS_SIZES,
        ("--mode", str, "NAME", exchanged),
        ("--max-waiting", float, "X", MAX_WAITING),
        ("--warmup-steps", int, "N", "synchronous steps after the first (default: 4)"),
        ("--emulate", bool, "", "run virtual devices on a real one: slower, but the same picture"),
    )

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
    many = add_options(
        command.add_argument_group(
            "a file of prompts",
            "Thousands of pictures with one compiled program, into the folder --output. Run it again to go on where it "
            "was ended. The folder has a list of them, manifest.jsonl.",
        ),
        ("--batch-size", int, "N", "pictures at once in each data group (default: 1)"),
    )
    each = "a prompt on each line; or .jsonl, with prompt, negative_prompt, seed, steps or guidance_scale on each"
    many.add_argument("--prompts", dest="prompt_file", metavar="FILE", type=Path, help=each)
    where = "where to write; several pictures get -1, -2, ... (default: a free name made from the prompt)"
    output = add_options(command.add_argument_group("output"), ("--output", Path, "PNG", where))
    output.add_argument("--overwrite", action="store_true", default=False, help="replace an --output that exists")
    small = "a small autoencoder for previews, such as madebyollin/taesdxl (default: the model's own)"
    add_options(
        output,
        ("--preview-every", int, "N", "write a preview beside the picture, as NAME.preview.png, every N steps"),
        ("--preview", str, "SOURCE", small),
    )
    amount = output.add_mutually_exclusive_group()
    amount.add_argument("--quiet", action="store_true", default=False, help="print only the pictures' paths")
    verbose = "also print what each device sends, receives and holds, and the seconds of each stage"
    amount.add_argument("--verbose", action="store_true", default=False, help=verbose)

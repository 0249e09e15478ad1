"""Making the pictures of a file of prompts: `distrijax generate --prompts FILE --output FOLDER`."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import jax
from tqdm import tqdm

from distrijax.checks import whole_number
from distrijax.cli.devices import choose_devices, join_processes
from distrijax.cli.folder import PictureFolder
from distrijax.cli.options import default_dtype
from distrijax.cli.prompt_file import TEXTS, Request, arguments, batches, read_requests
from distrijax.cli.settings import Settings
from distrijax.cli.targets import by_the_first
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.pipelines.base import SDXLPipeline
from distrijax.runtime import processes
from distrijax.runtime.agreement import check_same_everywhere, flags_everywhere
from distrijax.text.prompt import PromptInputs

Load = Callable[[argparse.Namespace, Settings, Parallel, dict[str, Any]], SDXLPipeline]


def make_all(
    options: argparse.Namespace,
    settings: Settings,
    shared: dict[str, Any],
    check: Callable[[Settings], None],
    load: Load,
) -> None:
    """Make the pictures of a file of prompts that are not in the folder yet.

    Args:
        settings: of all pictures, but for what a line of the file says.
        shared: arguments of a call that all pictures share.
        check: raises an error for values that no model takes.
        load: returns the pipeline, of which a call with these arguments is compiled.
    """
    if options.prompts:
        raise DistrijaxError("--prompts reads the prompts from a file; leave out the others, or --prompts")
    if others := [name for name in ("refiner", "upscale", "preview_every") if getattr(options, name, None) is not None]:
        option = others[0].replace("_", "-")
        raise DistrijaxError(f"--{option} is for a single prompt; leave it out, or --prompts")
    if "output" not in options:
        raise DistrijaxError("--prompts needs a folder for the pictures; add --output FOLDER")
    count = whole_number("--num-images", getattr(options, "num_images", 1), 1)
    each = whole_number("--batch-size", getattr(options, "batch_size", 1), 1)
    requests = read_requests(options.prompt_file, settings, count, check)
    join_processes(options)
    groups = jax.device_count() if options.auto else settings.data
    parallel = choose_devices(options, settings, each * groups)
    size = each * parallel.data
    axes = {axis: getattr(parallel, axis) for axis in ("data", "cfg", "patch", "emulate")}
    made_by = axes | {"dtype": settings.dtype or default_dtype()}
    requests = [request._replace(settings=request.settings.updated(made_by)) for request in requests]
    folder, done = _open(options, requests)
    todo = [request for request, is_done in zip(requests, done, strict=True) if not is_done]
    if processes.is_first() and len(todo) < len(requests) and not options.quiet:
        print(f"{len(requests) - len(todo)} of {len(requests)} pictures are made already", file=sys.stderr)
    if not todo:
        return
    call = shared | {"num_images_per_prompt": 1}
    pipe = load(options, settings, parallel, call | dict.fromkeys(TEXTS) | {"prompt": [""] * size})
    pipe.set_progress_bar_config(disable=options.quiet, leave=False, position=1)  # below the one of all pictures
    with _bar(options, len(requests), len(requests) - len(todo)) as bar:
        for batch in batches(todo, size, lambda request: _chunks(pipe, request)):
            output = pipe(**call | arguments(batch, size))  # type: ignore[operator]
            if folder is not None:
                for path in folder.add(batch, output.images[: len(batch)], output.mode):
                    bar.write(str(path), file=sys.stdout)
            bar.update(len(batch))


def _open(options: argparse.Namespace, requests: list[Request]) -> tuple[PictureFolder | None, list[bool]]:
    """Return the folder in the first process, and which of the pictures it has; all processes raise its errors."""
    check_same_everywhere({"--prompts": repr(requests)})
    folder = by_the_first(lambda: PictureFolder(options.output, requests, overwrite=options.overwrite))
    return folder, flags_everywhere([] if folder is None else folder.done, "looking for what is made")


def _chunks(pipe: SDXLPipeline, request: Request) -> int:
    texts = {name: getattr(request.settings, name) for name in TEXTS}
    return PromptInputs(**texts, prompt_syntax=request.settings.prompt_syntax).chunks(pipe.tokenizers)


def _bar(options: argparse.Namespace, total: int, made: int) -> Any:
    disable = options.quiet or not processes.is_first()
    return tqdm(total=total, initial=made, desc="pictures", unit="picture", disable=disable, file=sys.stderr)

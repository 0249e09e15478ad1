"""Previews: small pictures of what is being made, written beside the targets every few steps."""

import argparse
import io
import sys
from typing import Any

import numpy as np

from distrijax.checks import whole_number
from distrijax.cli.settings import Settings
from distrijax.cli.targets import Target
from distrijax.errors import DistrijaxError
from distrijax.pipelines.callback import StepCallback
from distrijax.pipelines.output import to_pil

LONGEST_SIDE = 512
"""Pixels of a preview, which is for watching."""


def preview_arguments(options: argparse.Namespace, settings: Settings, targets: list[Target]) -> dict[str, Any]:
    """Return the arguments of a call that writes previews, if the options ask for them.

    Args:
        targets: where the coming pictures will be written; those that are written have left the list. Of several
            processes, only the first has any.
    """
    if "preview_every" not in options:
        if "preview" in options:
            raise DistrijaxError("--preview names a model for previews, but none are asked for; add --preview-every 5")
        return {}
    every = whole_number("--preview-every", options.preview_every, 1, settings.steps)
    told = set()

    def write(pipe: object, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        for image, target in zip(to_pil(np.asarray(tensors["preview"])), targets, strict=False):
            image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            file, path = io.BytesIO(), target.path.with_suffix(".preview.png")
            image.save(file, format="PNG")
            try:
                Target(path, overwrite=True).write(file.getvalue())
                message = f"preview: {path}"
            except DistrijaxError as error:  # of a picture that will be whole: the run goes on
                message = f"no preview: {error}"
            if path not in told and not options.quiet:
                told.add(path)
                print(message, file=sys.stderr)

    return {"callback_on_step_end": StepCallback(write, ("preview",), every)}

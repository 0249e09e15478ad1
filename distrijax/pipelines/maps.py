"""What every step of a call sees beside the latents."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jax import Array

from distrijax.sampling.denoise import AfterStep, keep_latents

Part = tuple[str, slice]
"""Some channels of a map: the map's name, and which of its channels."""


@dataclasses.dataclass(frozen=True)
class MapKinds:
    """The maps of a call, before there are any: by default none.

    Attributes:
        channels: channels of each map [B, h, w, channels], by name.
        parts: what a callback may read and replace, under diffusers' names.
        after_step: what happens to the latents after each step.
    """

    channels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    after_step: AfterStep = keep_latents


NO_MAPS = MapKinds()


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins with, on the host.

    Attributes:
        latents: [B, h, w, C]; on the devices, with their padding, if another run left them there.
        maps: what every step sees beside them, [B, h, w, ...] by name.
    """

    latents: np.ndarray | Array
    maps: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

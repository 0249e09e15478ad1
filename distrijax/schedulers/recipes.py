"""How to sample from models that were distilled to a few steps: the settings that each was made for."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from distrijax.errors import DistrijaxError
from distrijax.schedulers.base import Config, Scheduler
from distrijax.schedulers.ddim import DDIMScheduler
from distrijax.schedulers.euler import EulerDiscreteScheduler
from distrijax.schedulers.euler_ancestral import EulerAncestralDiscreteScheduler
from distrijax.schedulers.lcm import LCMScheduler
from distrijax.schedulers.tcd import TCDScheduler

_TRAILING = {"timestep_spacing": "trailing"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings for one kind of distilled model.

        recipe = RECIPES["lightning-4"]
        parallel = Parallel(patch=8, warmup_steps=recipe.warmup_steps)
        pipe = StableDiffusionXLPipeline.from_pretrained(..., parallel=parallel)
        pipe.scheduler = recipe.scheduler(pipe.scheduler.config)
        image = pipe("a lighthouse", **recipe.call).images[0]

    Attributes:
        weights: the weights that it is for, by the name of their repository or file.
        kind: class of the scheduler.
        options: the scheduler's options, where they differ from the checkpoint's.
        steps: denoising steps.
        guidance_scale: 0 for models that have their guidance built in, which then take one branch.
        timesteps: custom timesteps, if the model was distilled at these.
        eta: noise of DDIM and TCD.
    """

    weights: str
    kind: type[Scheduler]
    steps: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: _TRAILING)
    guidance_scale: float = 0.0
    timesteps: tuple[int, ...] | None = None
    eta: float = 0.0

    @property
    def warmup_steps(self) -> int:
        """Synchronous steps after the first that suit so few.

        Activations are little use in the next step if that is at quite another noise level, and the first steps lay out
        the picture; but a synchronous step waits for every message.
        """
        return 0 if self.steps <= 2 else 1 if self.steps <= 4 else 2

    def scheduler(self, config: Config) -> Scheduler:
        """Return the scheduler, from the config of the checkpoint's own."""
        return self.kind.from_config(config, **self.options)

    @property
    def call(self) -> dict[str, Any]:
        """The arguments of a pipeline's call."""
        given = {"timesteps": list(self.timesteps)} if self.timesteps else {}
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale, "eta": self.eta} | given

    @property
    def advice(self) -> str:
        """What so few steps mean for devices that share a picture."""
        synchronous = min(self.steps, 1 + self.warmup_steps)
        displaced = self.steps - synchronous
        if not displaced:
            return (
                f"{self.steps} step{'s' * (self.steps > 1)}, all synchronous: displaced patches save nothing, so use "
                "mode full_sync, or data=N for N pictures at a time"
            )
        guided = "" if self.guidance_scale <= 1 else "cfg=2, "
        return (
            f"{displaced} of {self.steps} steps are displaced (warm-up {self.warmup_steps}). If pictures differ too "
            f"much from those of one device, use mode full_sync; for many pictures {guided}data=N, which waits for none"
        )


_X0 = _TRAILING | {"prediction_type": "sample"}
_BYTEDANCE, _HYPER = "ByteDance/SDXL-Lightning, sdxl_lightning", "ByteDance/Hyper-SD, Hyper-SDXL"
RECIPES: dict[str, Recipe] = {
    "turbo": Recipe("stabilityai/sdxl-turbo", EulerAncestralDiscreteScheduler, 1),
    "turbo-4": Recipe("stabilityai/sdxl-turbo", EulerAncestralDiscreteScheduler, 4),
    "lightning-1": Recipe(f"{_BYTEDANCE}_1step_unet_x0", EulerDiscreteScheduler, 1, _X0),
    "lightning-2": Recipe(f"{_BYTEDANCE}_2step_unet or _lora", EulerDiscreteScheduler, 2),
    "lightning-4": Recipe(f"{_BYTEDANCE}_4step_unet or _lora", EulerDiscreteScheduler, 4),
    "lightning-8": Recipe(f"{_BYTEDANCE}_8step_unet or _lora", EulerDiscreteScheduler, 8),
    "lcm": Recipe("latent-consistency/lcm-lora-sdxl", LCMScheduler, 4, {}, guidance_scale=1.0),
    "lcm-unet": Recipe("latent-consistency/lcm-sdxl", LCMScheduler, 4, {}, guidance_scale=8.0),
    "tcd": Recipe("h1t/TCD-SDXL-LoRA", TCDScheduler, 4, {}, eta=0.3),
    "hyper-1": Recipe(f"{_HYPER}-1step-Unet", LCMScheduler, 1, {}, timesteps=(800,)),
    "hyper-2": Recipe(f"{_HYPER}-2steps-lora", DDIMScheduler, 2),
    "hyper-4": Recipe(f"{_HYPER}-4steps-lora", DDIMScheduler, 4),
    "hyper-8": Recipe(f"{_HYPER}-8steps-lora", DDIMScheduler, 8),
    "hyper-unified": Recipe(f"{_HYPER}-1step-lora", TCDScheduler, 1, {}, eta=1.0),
    "hyper-cfg-8": Recipe(f"{_HYPER}-8steps-CFG-lora", DDIMScheduler, 8, guidance_scale=5.0),
    "hyper-cfg-12": Recipe(f"{_HYPER}-12steps-CFG-lora", DDIMScheduler, 12, guidance_scale=5.0),
    "dmd2-1": Recipe("tianweiy/DMD2, dmd2_sdxl_1step_unet", LCMScheduler, 1, {}, timesteps=(399,)),
    "dmd2-4": Recipe(
        "tianweiy/DMD2, dmd2_sdxl_4step_unet or _lora", LCMScheduler, 4, {}, timesteps=(999, 749, 499, 249)
    ),
}
"""Name -> recipe; the steps that it was distilled to are part of most names."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        DistrijaxError: there is none; the message has those that are near.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=3) if isinstance(name, str) else []
    raise DistrijaxError(
        f"there is no recipe {name!r}; {'near' if near else 'there are'}: {', '.join(near or RECIPES)}"
    )

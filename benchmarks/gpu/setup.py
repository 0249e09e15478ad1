"""What a run measures: SDXL base in bf16 on a GPU; without one a tiny model, to see that every stage runs."""

import dataclasses
import functools

import jax

from distrijax import Parallel
from distrijax.checkpoint import Checkpoint, Component, find
from distrijax.models.unet import UNet
from distrijax.tools.bench import weights
from distrijax.tools.bench.timing import RunSettings
from distrijax.tools.workload import Workload
from gpu.results import Results

TINY = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [1, 1],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
}
DISPATCHES = {1024: (8, 20), 2048: (2, 10), 3840: (2, 4)}  # steps of a dispatch, and how many are timed, by size


@dataclasses.dataclass(frozen=True)
class Setup:
    """The model, and how much of it is timed.

    Attributes:
        tiny: a model that a CPU compiles in seconds, in fp32; its pictures are small whatever their size should be.
    """

    results: Results
    tiny: bool

    @property
    def dtype(self) -> str:
        return "float32" if self.tiny else "bfloat16"

    @functools.cached_property
    def model(self) -> Checkpoint:
        if not self.tiny:
            return find("sdxl-base")
        demo = find("demo")
        unet = Component.from_json("unet", dict(demo.components["unet"].json) | TINY, "the tiny model")
        return dataclasses.replace(demo, name="tiny", components={**demo.components, "unet": unet})

    def workload(self, size: int, steps: int | None = None) -> Workload:
        """Return a picture of `size` pixels along each side, by default with the steps of a dispatch."""
        usual, size = (2, 128) if self.tiny else (DISPATCHES[size][0], size)
        return Workload(self.model, size, size, self.dtype, steps=steps or usual)

    def runs(self, size: int) -> RunSettings:
        return RunSettings(2 if self.tiny else DISPATCHES[size][1], warm_up=2)

    @functools.cached_property
    def unet(self) -> UNet:
        """The U-Net with random weights, which the stages of a process share."""
        return jax.block_until_ready(weights.unet(self.model, self.dtype, Parallel()))

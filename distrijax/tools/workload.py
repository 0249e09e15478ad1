"""The pictures whose cost is planned or measured."""

import dataclasses

from distrijax.checkpoint import Checkpoint
from distrijax.checks import whole_number
from distrijax.errors import DistrijaxError
from distrijax.parallel.auto.choose import Choice, Machine, choose
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.options import Parallel


@dataclasses.dataclass(frozen=True)
class Workload:
    """One batch of pictures.

    Attributes:
        height, width: in pixels.
        dtype: of weights and arithmetic.
        guided: classifier-free guidance is on: two branches, unless the model takes the guidance scale as an input.
        pictures: number of pictures in the batch.
        steps: denoising steps; for `bench`, those of one dispatch.

    Raises:
        DistrijaxError: a value cannot be used.
    """

    model: Checkpoint
    height: int
    width: int
    dtype: str
    guided: bool = True
    pictures: int = 1
    steps: int = 2

    def __post_init__(self) -> None:
        scale = self.vae_scale_factor
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < scale or value % scale:
                nearest = max(scale, value // scale * scale)
                raise DistrijaxError(f"{name} is {value}; it must be a multiple of {scale} pixels, such as {nearest}")
        for name in ("pictures", "steps"):
            whole_number(name, getattr(self, name), 1)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along each side."""
        return self.model.vae.scale_factor

    @property
    def latents(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.height // self.vae_scale_factor, self.width // self.vae_scale_factor

    @property
    def branches(self) -> int:
        return 2 if self.guided and self.model.unet.time_cond_proj_dim is None else 1

    def layout(self, parallel: Parallel) -> SlabLayout:
        """Return how the latents' rows are split over the devices.

        Raises:
            DistrijaxError: this workload does not fit the mesh, or mode is "tensor".
        """
        if parallel.mode == "tensor":
            raise DistrijaxError("mode is 'tensor', whose steps are neither planned nor timed; choose another mode")
        because = "it is off, or an input of this model"
        parallel.check(pictures=self.pictures, guided=self.branches == 2, because=because)
        return parallel.layout(self.latents[0], self.model.unet.row_multiple)

    def choose(self, parallel: Parallel, machine: Machine | None = None) -> Choice:
        """Return the devices with the mode of these pictures; see `distrijax.parallel.auto.choose`."""
        rows, columns = self.latents
        return choose(
            parallel, self.model.unet, height=rows, width=columns, pictures=self.pictures, guided=self.branches == 2,
            dtype=self.dtype, machine=machine,
        )  # fmt: skip

    def json(self) -> dict[str, object]:
        return {**vars(self), "model": self.model.name, "random_weights": not self.model.has_weights}

    def __str__(self) -> str:
        branches = "with guidance" if self.branches == 2 else "without guidance"
        return f"{self.model.name}, {self.height}x{self.width}, {self.pictures} a batch, {branches}, {self.dtype}"

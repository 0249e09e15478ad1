"""How the rows of a picture are divided among devices."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True)
class SlabLayout:
    """Equal slabs of rows, from top to bottom; padding fills the last ones and never reaches the picture.

    Attributes:
        height: rows of the whole picture (usually of its latents).
        devices: number of slabs, one per device.
        multiple: every slab holds a multiple of this many rows. A model that halves its rows d times needs 2**d.
    """

    height: int
    devices: int
    multiple: int = 1

    @property
    def slab(self) -> int:
        """Rows of one device, padding included."""
        return -(-self.height // (self.devices * self.multiple)) * self.multiple

    @property
    def padded_height(self) -> int:
        """Rows of all devices together."""
        return self.slab * self.devices

    @property
    def padding(self) -> int:
        """Number of padding rows."""
        return self.padded_height - self.height

    def height_at(self, slab: int) -> int:
        """Return the rows of the whole picture at the level where a slab has `slab` rows: 33, then 17, then 9."""
        return -(-self.height * slab // self.slab)

    def counts(self, slab: int) -> np.ndarray:
        """Return how many rows of the picture each device holds where a slab has `slab` rows: int32 [devices]."""
        starts = np.arange(self.devices) * slab
        return np.clip(self.height_at(slab) - starts, 0, slab).astype(np.int32)

    def pad(self, x: Array, axis: int) -> Array:
        """Return `x` with zeros appended along `axis`, up to `padded_height`."""
        return jnp.pad(x, [(0, self.padding if i == axis else 0) for i in range(x.ndim)]) if self.padding else x

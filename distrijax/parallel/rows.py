"""How the rows of a picture are dealt to devices."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class Rows:
    """Equal slabs of rows, from the top; what the last ones lack is padding, which never reaches the picture.

    Args:
        total: rows of the picture (of latents, as a rule).
        patches: slabs, one a device.
        unit: slabs hold a multiple of so many rows. A model that halves its rows d times needs 2**d.
    """

    total: int
    patches: int
    unit: int = 1

    @property
    def slab(self) -> int:
        """Rows of one device."""
        return -(-self.total // (self.patches * self.unit)) * self.unit

    @property
    def padding(self) -> int:
        return self.slab * self.patches - self.total

    def inside(self, height: int) -> int:
        """Rows of the whole picture where a slab has `height` rows: 33 latent rows are 17, then 9 further down."""
        return -(-self.total * height // self.slab)

    def counts(self, height: int) -> np.ndarray:
        """Rows of the picture that each device holds where a slab has `height` rows: int32 [patches]."""
        starts = np.arange(self.patches) * height
        return np.clip(self.inside(height) - starts, 0, height).astype(np.int32)

    def pad(self, x: ArrayLike, axis: int) -> Array:
        """`x` with zero rows below up to `slab * patches`."""
        x = jnp.asarray(x)
        return jnp.pad(x, [(0, self.padding if i == axis else 0) for i in range(x.ndim)]) if self.padding else x

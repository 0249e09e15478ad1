"""The weights of a pipeline on its devices."""

import jax

from distrijax.models.unet import UNet
from distrijax.nn.module import Collected, Weights
from distrijax.parallel.options import Parallel
from distrijax.parallel.placement import place_model, put
from distrijax.parallel.policies import TENSOR
from distrijax.parallel.tensor import spread_weights
from distrijax.runtime.agreement import check_same_everywhere

Parts = dict[str, Weights]
"""The weights of the networks by name, for programs."""

NETWORKS = "unet", "vae", "text_encoder", "text_encoder_2"


class PlacedWeights:
    """The networks of a pipeline, which are moved to its devices when a call needs them."""

    parallel: Parallel
    unet: UNet
    _collected: dict[str, tuple[Parallel, Collected]]  # the weights of networks that have been placed

    def place_parts(self) -> Parts:
        """Return the weights, after moving those of parts that the caller has replaced to the devices of the others."""
        return {name: self._placed(name) for name in (*NETWORKS, "preview") if getattr(self, name) is not None}

    def _placed(self, name: str) -> Weights:
        part, spreads = getattr(self, name), name == "unet" and self.parallel.mode == TENSOR
        parallel, known = self._collected.get(name, (None, None))
        if known is None or known.module is not part or parallel != self.parallel or known.changed():
            setattr(self, name, (spread_weights if spreads else place_model)(part, self.parallel))
            known = Collected(getattr(self, name))
            self._collected[name] = self.parallel, known
            if not spreads and isinstance(known.weights.arrays[0], jax.Array):
                check_same_everywhere({f"{name}'s weights": known.weights.arrays})
        return known.weights

    def offload(self) -> None:
        """Move the U-Net's weights to the host's memory, from where the next call fetches them."""
        self._collected.pop("unet", None)  # which would keep them on the devices
        self.unet = put(self.unet, self.parallel.replicated.with_memory_kind("pinned_host"))

    def shapes(self) -> Parts:
        """Return the weights' shapes, placed like them."""
        parts = {name: getattr(self, name) for name in (*NETWORKS, "preview")}
        here = {name: Weights.of(part) for name, part in parts.items() if part is not None}
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.parallel.replicated), here)

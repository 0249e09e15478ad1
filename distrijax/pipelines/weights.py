"""The weights of a pipeline on its devices."""

from collections.abc import Iterable

import jax

from distrijax.adapters.chosen import Adapters
from distrijax.adapters.merge import is_changed, restore
from distrijax.models.unet import UNet
from distrijax.nn.module import Collected, Weights
from distrijax.parallel.options import Parallel
from distrijax.parallel.placement import place_model, put
from distrijax.parallel.policies import TENSOR
from distrijax.parallel.tensor import spread_weights
from distrijax.pipelines.programs import Programs
from distrijax.runtime.agreement import check_same_everywhere

Parts = dict[str, Weights]
"""The weights of the networks by name, for programs."""

NETWORKS = "unet", "vae", "text_encoder", "text_encoder_2"


class PlacedWeights:
    """The networks of a pipeline, which are moved to its devices when a call needs them."""

    parallel: Parallel
    unet: UNet
    adapters: Adapters
    programs: Programs
    _collected: dict[str, tuple[Parallel, Collected]]  # the weights of networks that have been placed

    def place_parts(self, names: Iterable[str] = (*NETWORKS, "preview"), lora_scale: float = 1.0) -> Parts:
        """Return the weights with those adapters that are active.

        Parts that the caller has replaced are moved to the devices of the others first.

        Args:
            names: the networks that are needed.
            lora_scale: what the weights of adapters are multiplied by.
        """
        return {name: self._placed(name, lora_scale) for name in names if getattr(self, name) is not None}

    def _placed(self, name: str, lora_scale: float) -> Weights:
        part, spreads = getattr(self, name), name == "unet" and self.parallel.mode == TENSOR
        parallel, known = self._collected.get(name, (None, None))
        same = known is not None and known.module is part and parallel == self.parallel
        # Pipelines that share the module may have changed its adapters, which leaves the weights where they are.
        if known is None or not same or (known.changed() and not (is_changed(part) and self._is_placed(name))):
            restore(part)  # what is moved are the checkpoint's weights
            setattr(self, name, (spread_weights if spreads else place_model)(part, self.parallel))
            known = Collected(getattr(self, name))
            self._collected[name] = self.parallel, known
            if not spreads and isinstance(known.weights.arrays[0], jax.Array):
                check_same_everywhere({f"{name}'s weights": known.weights.arrays})
        wanted = self.adapters.wanted(name, known.module.config, lora_scale)
        if self.programs.merge.apply(known.module, wanted):
            known.changed()
        return known.weights

    def _is_placed(self, name: str) -> bool:
        """Return whether the weights of a network that has been placed are all on the devices."""
        _, known = self._collected[name]
        where = (getattr(x, "sharding", None) for x in known.weights.arrays)
        return all(getattr(sharding, "mesh", None) == self.parallel.mesh for sharding in where)

    def offload(self) -> None:
        """Move the U-Net's weights to the host's memory, from where the next call fetches them."""
        restore(self.unet)  # adapters are merged again where the weights are fetched
        self._collected.pop("unet", None)  # which would keep them on the devices
        self.unet = put(self.unet, self.parallel.replicated.with_memory_kind("pinned_host"))

    def shapes(self) -> Parts:
        """Return the weights' shapes, placed like them."""
        parts = {name: getattr(self, name) for name in (*NETWORKS, "preview")}
        here = {name: Weights.of(part) for name, part in parts.items() if part is not None}
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.parallel.replicated), here)

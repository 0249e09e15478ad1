"""The methods of a pipeline for LoRA and its relatives: diffusers', argument for argument."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from distrijax.adapters.blocks import COMPONENTS, Weight, weights_of
from distrijax.adapters.chosen import Adapters
from distrijax.adapters.files import Source, open_adapter, read_adapter
from distrijax.adapters.merge import keep
from distrijax.checkpoint import Component
from distrijax.checks import finite_number, true_or_false
from distrijax.errors import DistrijaxError

if TYPE_CHECKING:
    from distrijax.models.unet import UNet
    from distrijax.pipelines.base import Parts


class AdapterMethods:
    """What a pipeline does with adapters. They change its weights when the next picture is made."""

    adapters: Adapters
    unet: "UNet"

    if TYPE_CHECKING:

        def place_parts(self, names: Iterable[str] = ..., lora_scale: float = ...) -> Parts: ...

    def load_lora_weights(
        self,
        source: Source,
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        hotswap: bool = False,
    ) -> None:
        """Load an adapter, which is then the only active one in the parts that it changes, with weight 1.

        Args:
            source: a `.safetensors` file, a folder or a hub id, `demo:NAME` for one of the demo model's, or a
                dictionary of tensors.
            adapter_name: by default `default_0`, `default_1`, ...
            weight_name: name of the file in a folder or on the hub.
            subfolder: folder in it.
            hotswap: replace the adapter of that name, and keep its weight.

        Raises:
            DistrijaxError: the file cannot be read, or is no adapter of this model; all tensors that do not fit are
                listed, and nothing has changed.
        """
        if adapter_name is not None and not (isinstance(adapter_name, str) and adapter_name):
            raise DistrijaxError(f"adapter_name is {adapter_name!r}; it must be a string")
        if true_or_false("hotswap", hotswap):
            self.adapters.check([str(adapter_name)])
        elif adapter_name in self.adapters.loaded:
            raise DistrijaxError(
                f"adapter_name is {adapter_name!r}, which is loaded already; choose another name, delete that adapter, "
                "or replace it with hotswap=True"
            )
        parts = {name: part for name in COMPONENTS if (part := getattr(self, name)) is not None}
        components = {name: Component.from_module(name, part) for name, part in parts.items()}
        adapter = read_adapter(open_adapter(source, weight_name, subfolder), components)
        self.adapters.add(adapter_name, adapter, replace=hotswap)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: Weight | Sequence[Weight | None] | None = None
    ) -> None:
        """Make these adapters active, and no others.

        Args:
            adapter_weights: a number for all, or a list with one for each: None (1), a number, a dictionary by
                component (`{"unet": 0.7, "text_encoder": 0.2}`), or one by block of the U-Net
                (`{"down": 0.8, "mid": 1.0, "up": {"block_0": 0.6, "block_1": [0.4, 0.8, 1.0]}}`), in which what is not
                named has 1.
        """
        names = _names("adapter_names", adapter_names)
        self.adapters.check(names)
        weights = list(adapter_weights) if isinstance(adapter_weights, list | tuple) else [adapter_weights] * len(names)
        if len(weights) != len(names) or len(set(names)) != len(names):
            raise DistrijaxError(
                f"there are {len(names)} adapter_names ({', '.join(names)}) and {len(weights)} adapter_weights; there "
                "must be one for each, and each name once"
            )
        found = {
            name: weights_of("adapter_weights", weight, self.unet.config)
            for name, weight in zip(names, weights, strict=True)
        }
        self.adapters.activate(found)

    def get_active_adapters(self) -> list[str]:
        """Return the names of the active adapters; as in diffusers, of the last component that has any."""
        parts = self.adapters.by_component()
        return list(self.adapters.active.get(list(parts)[-1], ())) if parts else []

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of the adapters that are loaded, by component that they change."""
        return self.adapters.by_component()

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget adapters."""
        names = list(dict.fromkeys(_names("adapter_names", adapter_names)))
        self.adapters.check(names)
        self.adapters.delete(names)

    def disable_lora(self) -> None:
        """Make pictures without adapters until `enable_lora` is called."""
        self.adapters.enabled = False

    def enable_lora(self) -> None:
        """Make pictures with the active adapters again."""
        self.adapters.enabled = True

    def fuse_lora(
        self,
        components: Sequence[str] = COMPONENTS,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Fix adapters in the weights of components, where `scale` and `set_adapters` no longer change them.

        With `unload_lora_weights` after it, the changed weights become the pipeline's own, and the checkpoint's, which
        are otherwise kept for `unfuse_lora`, are freed.

        Args:
            lora_scale: what the weights of adapters are multiplied by.
            safe_fusing: has no effect: files with NaN or infinity are refused when they are loaded.
            adapter_names: by default the active ones.
        """
        parts = _components(components)
        scale = finite_number("lora_scale", lora_scale)
        true_or_false("safe_fusing", safe_fusing)
        names = None if adapter_names is None else _names("adapter_names", adapter_names)
        self.adapters.check(names or ())
        for part in parts:
            self.adapters.fuse(part, names, scale)

    def unfuse_lora(self, components: Sequence[str] = COMPONENTS) -> None:
        """Take fused adapters out of the weights of components, bit for bit."""
        for part in _components(components):
            self.adapters.fused.pop(part, None)

    @property
    def fused_loras(self) -> set[str]:
        """Names of the fused adapters."""
        return {name for adapters in self.adapters.fused.values() for name in adapters}

    @property
    def num_fused_loras(self) -> int:
        """Number of the fused adapters."""
        return len(self.fused_loras)

    def unload_lora_weights(self) -> None:
        """Forget all adapters. Those that are fused stay in the weights, and can no longer be taken out."""
        if fused := list(self.adapters.fused):
            self.place_parts(fused)
            for part in fused:
                keep(getattr(self, part))
        self.adapters.clear()


def check_lora_scale(cross_attention_kwargs: object) -> float:
    """Return what a call multiplies the weights of adapters by."""
    if cross_attention_kwargs is None:
        return 1.0
    if not isinstance(cross_attention_kwargs, Mapping) or set(cross_attention_kwargs) - {"scale"}:
        raise DistrijaxError(
            f"cross_attention_kwargs is {cross_attention_kwargs!r}; it must be a dictionary with nothing but `scale`, "
            "what the weights of adapters are multiplied by"
        )
    return finite_number("cross_attention_kwargs['scale']", cross_attention_kwargs.get("scale", 1.0))


def _names(argument: str, names: object) -> list[str]:
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, list | tuple) or not all(isinstance(name, str) for name in listed):
        raise DistrijaxError(f"{argument} is {names!r}; it must be a name or a list of names")
    return list(listed)


def _components(names: object) -> list[str]:
    listed = _names("components", names)
    if not listed or set(listed) - set(COMPONENTS):
        raise DistrijaxError(f"components is {names!r}; it must list {', '.join(COMPONENTS)}, or some of them")
    return listed

"""Which adapters are loaded, which are active, and how much each counts, as diffusers and PEFT decide."""

import itertools
import logging
from collections.abc import Iterable, Mapping

from distrijax.adapters.blocks import COMPONENTS, ByLayer, layer_weight
from distrijax.adapters.files import Adapter
from distrijax.adapters.kinds import Delta
from distrijax.errors import DistrijaxError

logger = logging.getLogger(__name__)

Weights = Mapping[str, float | ByLayer]


class Adapters:
    """The adapters of a pipeline, which pipelines made from it share.

    Attributes:
        loaded: by name, in the order of loading.
        weights: how much each counts, by name and component.
        active: names of those that count, by component.
        enabled: whether any counts.
        fused: adapters that count whatever is active, by component, with their weights.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all adapters."""
        self.loaded: dict[str, Adapter] = {}
        self.weights: dict[str, Weights] = {}
        self.active: dict[str, tuple[str, ...]] = {}
        self.enabled = True
        self.fused: dict[str, dict[str, tuple[Adapter, float | ByLayer, float]]] = {}

    def add(self, name: str | None, adapter: Adapter, *, replace: bool) -> str:
        """Add an adapter under a name of its own, and return the name.

        It is then the only active one in the components that it changes, and others stay active elsewhere.
        """
        if name is None:
            numbers = itertools.count(len(self.loaded))  # as diffusers counts
            name = next(name for i in numbers if (name := f"default_{i}") not in self.loaded)
        self.loaded[name] = adapter
        if not replace:
            self.weights[name] = dict.fromkeys(COMPONENTS, 1.0)
            self.active |= dict.fromkeys(adapter.deltas, (name,))
            self.enabled = True
        return name

    def activate(self, weights: Mapping[str, Weights]) -> None:
        """Make these adapters the active ones everywhere, with these weights."""
        self.weights |= weights
        self.active = dict.fromkeys(COMPONENTS, tuple(weights))

    def check(self, names: Iterable[str]) -> None:
        """Raise DistrijaxError unless there are adapters of these names."""
        for name in names:
            if name not in self.loaded:
                there = f"there are {', '.join(self.loaded)}" if self.loaded else "none is loaded"
                raise DistrijaxError(f"there is no adapter {name!r}; {there}")

    def by_component(self) -> dict[str, list[str]]:
        """Return the names of the adapters that are loaded, by component that they change."""
        found = {part: [name for name, adapter in self.loaded.items() if part in adapter.deltas] for part in COMPONENTS}
        return {part: names for part, names in found.items() if names}

    def delete(self, names: Iterable[str]) -> None:
        """Forget adapters. As in PEFT, the first one that is left in a component is active if no other is."""
        for name in names:
            del self.loaded[name], self.weights[name]
        for component, before in list(self.active.items()):
            left = tuple(name for name in before if name in self.loaded)
            if before and not left and (others := self.by_component().get(component)):
                left = (others[0],)
                logger.warning("the adapter %s is active in %s now, as no other is", others[0], component)
            self.active[component] = left

    @property
    def signature(self) -> object:
        """What must be the same in all processes."""
        active = {
            component: [(self.loaded[name].digest, self.weights[name].get(component)) for name in names if self.enabled]
            for component, names in self.active.items()
        }
        fused = {
            component: [(adapter.digest, weights, scale) for adapter, weights, scale in adapters.values()]
            for component, adapters in self.fused.items()
        }
        return active, fused

    def fuse(self, component: str, names: Iterable[str] | None, scale: float) -> None:
        """Make adapters count in a component with their weights of now, times `scale`, until they are unfused.

        Args:
            names: by default, those that are active there.
        """
        fused = self.fused.setdefault(component, {})
        for name in self.active.get(component, ()) if names is None else names:
            if component in self.loaded[name].deltas:
                fused[name] = self.loaded[name], self.weights[name][component], scale
        if not fused:
            del self.fused[component]

    def wanted(self, component: str, config: object, scale: float) -> dict[str, tuple[tuple[Delta, float], ...]]:
        """Return the changes of each parameter of a component, by path, with their weights other than 0.

        Args:
            config: of the component.
            scale: what the weights are multiplied by, except for those of fused adapters.
        """
        if component in self.fused:
            chosen = list(self.fused[component].values())
        else:
            names = self.active.get(component, ()) if self.enabled and scale else ()
            chosen = [(self.loaded[name], self.weights[name][component], scale) for name in names]
        wanted: dict[str, tuple[tuple[Delta, float], ...]] = {}
        for adapter, weights, factor in chosen:
            if component not in adapter.deltas:
                continue
            if adapter.configs[component] != config:
                raise DistrijaxError(
                    f"{adapter.source} was loaded for another {component} than the pipeline has now; delete it with "
                    "delete_adapters, and load it again"
                )
            for path, delta in adapter.deltas[component].items():
                if weight := layer_weight(weights, delta.layer) * factor:
                    wanted[path] = (*wanted.get(path, ()), (delta, weight))
        return wanted

"""The user's choice: how many devices share a picture, and what they tell each other when."""

import dataclasses
from collections.abc import Collection, Sequence
from functools import cached_property
from math import gcd
from typing import Any, Self

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distrijax.errors import DistrijaxError
from distrijax.parallel.rows import Rows
from distrijax.parallel.slabs import DISPLACED
from distrijax.parallel.wire import AXIS

AXES = ("data", "cfg", AXIS)
MODES = ("full_sync", *DISPLACED, "naive_patch", "tensor")


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A picture spread over a mesh of devices.

    `patch` devices hold a slab of its rows each, `cfg` of 2 gives either guidance branch its own devices, and `data`
    groups of devices make different pictures of a batch. The whole takes `data * cfg * patch` devices; in order of
    distance, those of a patch axis are nearest to each other, and those of the data axis farthest.

    Args:
        mode: what is exchanged after the warm-up. `corrected_async_gn` (default), `stale_gn`, `sync_gn`,
            `separate_gn` and `no_sync` use neighbours' activations of the step before (arXiv 2402.19481) and differ in
            their group norms (the default may leave marks where slabs are few rows high: try `stale_gn` there);
            `full_sync` waits for those of the same step and equals one device. `naive_patch` (no exchange at all) and
            `tensor` (weights spread instead of rows) are the baselines of that paper.
        warmup_steps: synchronous steps besides the first, before displaced ones follow.
        emulate: run as virtual devices on one real one: slower, but the very picture that so many devices would make.
        devices: which; by default the first of `jax.devices()`.

    Raises:
        DistrijaxError: values that cannot be used.
    """

    data: int = 1
    cfg: int = 1
    patch: int = 1
    mode: str = "corrected_async_gn"
    warmup_steps: int = 4
    emulate: bool = False
    devices: tuple[jax.Device, ...] | None = None

    def __post_init__(self) -> None:
        for name in (*AXES, "warmup_steps"):
            value, least = getattr(self, name), int(name in AXES)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise DistrijaxError(f"{name} is {value!r}; it must be a whole number, {least} or more")
        if self.cfg > 2:
            raise DistrijaxError(f"cfg is {self.cfg}; there are two guidance branches, so it can be 1 or 2")
        if self.mode not in MODES:
            raise DistrijaxError(f"mode is {self.mode!r}; it must be one of {', '.join(MODES)}")
        if not isinstance(self.emulate, bool):
            raise DistrijaxError(f"emulate is {self.emulate!r}; it must be True or False")
        if self.emulate and self.mode == "tensor":
            raise DistrijaxError(
                "mode 'tensor' spreads weights over real devices and cannot be emulated; leave out emulate, or choose "
                "another mode, such as 'full_sync'"
            )
        if self.devices is not None and len(set(self.devices)) < max(1, len(self.devices)):
            raise DistrijaxError(f"devices is {self.devices!r}; it must name one device or more, each of them once")
        if not self.emulate:
            self._check_devices()

    def _check_devices(self) -> None:
        present = len(jax.devices() if self.devices is None else self.devices)
        if self.size > present:
            raise DistrijaxError(
                f"data={self.data} x cfg={self.cfg} x patch={self.patch} takes {self.size} devices; there: {present}. "
                f"Choose at most {present}, such as {_suggestion(present)}, or emulate=True to run them all on one"
            )
        idle = {d.process_index for d in jax.devices()} - {d.process_index for d in self._chosen}
        if idle:
            raise DistrijaxError(
                f"data={self.data} x cfg={self.cfg} x patch={self.patch} takes {self.size} of {present} devices, which "
                f"leaves process {min(idle)} without any; choose {_suggestion(present)}, or start fewer processes"
            )

    @classmethod
    def auto(cls, *, guided: bool = True, pictures: int = 1, devices: Sequence[jax.Device] | None = None) -> Self:
        """All devices present (or `devices`): pictures of a batch apart first, then guidance branches, then rows.

        Args:
            guided: there is classifier-free guidance, that is, a guidance scale above 1.
            pictures: in a batch.
        """
        if isinstance(pictures, bool) or not isinstance(pictures, int | np.integer) or pictures < 1:
            raise DistrijaxError(f"pictures is {pictures!r}; it must be a whole number, 1 or more")
        count = len(jax.devices() if devices is None else devices)
        data = gcd(count, pictures)
        cfg = 2 if guided and count // data % 2 == 0 else 1
        return cls(data, cfg, count // (data * cfg), devices=None if devices is None else tuple(devices))

    @property
    def size(self) -> int:
        """Devices, real or virtual."""
        return self.data * self.cfg * self.patch

    @property
    def _chosen(self) -> Sequence[jax.Device]:
        return (jax.devices() if self.devices is None else self.devices)[: self.size]

    @cached_property
    def mesh(self) -> Mesh:
        """The real devices, with axes data, cfg and patch; of one device where they are emulated."""
        shape = (1, 1, 1) if self.emulate else (self.data, self.cfg, self.patch)
        # Of several processes, each emulates for itself.
        chosen = (self.devices or jax.local_devices())[:1] if self.emulate else self._chosen
        return Mesh(np.array(chosen).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)

    def rows(self, total: int, unit: int) -> Rows:
        """How `total` rows are dealt.

        Raises:
            DistrijaxError: there are not enough for every device to have some.
        """
        if self.mode == "tensor" or self.patch == 1:
            return Rows(total, 1)
        most = -(-total // unit)
        if self.patch > most:
            raise DistrijaxError(
                f"patch is {self.patch}, but {total} rows of latents give only {most} devices the {unit} that each "
                f"needs at least; choose patch={most} or less, or a taller picture"
            )
        return Rows(total, self.patch, unit)

    def check(self, *, pictures: int, guided: bool, because: str = "there is no guidance") -> None:
        """Whether so many pictures can be made with these axes.

        Args:
            because: why they are not guided, for the message.

        Raises:
            DistrijaxError: there is no second guidance branch for cfg=2, or data does not divide the pictures.
        """
        if self.cfg > 1 and not guided:
            raise DistrijaxError(
                f"cfg is 2, but there is no second guidance branch: {because}; use cfg=1, patch={self.cfg * self.patch}"
            )
        if pictures % self.data:
            more = -(-pictures // self.data) * self.data
            raise DistrijaxError(f"{pictures} pictures cannot be dealt to data={self.data}; ask for {more}")

    @property
    def displaces(self) -> bool:
        """There are steps that use what was sent in the one before."""
        return self.mode in DISPLACED and self.patch > 1

    def synchronous_steps(self, steps: int) -> int:
        """How many of so many steps are alike: all of them, or those before the displaced ones."""
        return min(steps, 1 + self.warmup_steps) if self.displaces else steps

    @cached_property
    def compiled(self) -> "Parallel":
        """What programs depend on: they are the same whatever the number of synchronous steps."""
        return dataclasses.replace(self, warmup_steps=0)

    @cached_property
    def without_branches(self) -> "Parallel":
        """The same devices for the autoencoder, which has no guidance: all of a picture's share its rows, in step."""
        return dataclasses.replace(self, cfg=1, patch=self.cfg * self.patch, mode="full_sync", warmup_steps=0)

    @property
    def manual_axes(self) -> set[str]:
        """Those along which we say what each device does; in mode `tensor`, the compiler does along the patch axis."""
        return set(AXES) - ({AXIS} if self.mode == "tensor" else set())

    @property
    def replicated(self) -> NamedSharding:
        """A whole copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def place(self, tree: Any, specs: Any) -> Any:
        """Host arrays on the devices, each its part by `specs`, a prefix of `tree`. All processes give the same."""

        def put(spec: PartitionSpec, x: Any) -> Array:
            sharding = self.replicated if self.emulate else NamedSharding(self.mesh, cut(spec, self.manual_axes))
            host = np.asarray(x)
            return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

        return jax.tree.map(put, spec_of_leaves(specs, tree), tree, is_leaf=is_spec)


def axes_of(spec: PartitionSpec) -> list[tuple[str, ...]]:
    """The mesh axes that cut each dimension."""
    return [() if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in spec]


def cut(spec: PartitionSpec, axes: Collection[str]) -> PartitionSpec:
    """`spec` along these mesh axes alone."""
    kept = [tuple(name for name in names if name in axes) for names in axes_of(spec)]
    return PartitionSpec(*(names or None for names in kept))


def is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def spec_of_leaves(specs: Any, tree: Any) -> Any:
    """`specs`, a prefix of `tree`, with one spec for every leaf of it."""
    return jax.tree.map(lambda spec, part: jax.tree.map(lambda _: spec, part), specs, tree, is_leaf=is_spec)


def replicate(tree: Any, parallel: Parallel) -> Any:
    """Arrays whole on every device; those that are already stay as they are."""
    return jax.device_put(tree, parallel.replicated)


def fetch(tree: Any) -> Any:
    """Host arrays of device arrays that are whole on every device."""
    return jax.tree.map(np.asarray, tree)


def _suggestion(devices: int) -> str:
    cfg = 2 if devices % 2 == 0 else 1
    return f"cfg={cfg} x patch={devices // cfg}"

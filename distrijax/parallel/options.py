"""The user's choice of how many devices share a picture, and what they exchange when."""

import dataclasses
from collections.abc import Sequence
from functools import cache, cached_property
from math import gcd
from typing import Self

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distrijax.checks import finite_number, one_of, true_or_false, whole_number
from distrijax.errors import DistrijaxError
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.phases import Phase, phases
from distrijax.parallel.policies import AUTO, FULL_SYNC, MODES, TENSOR, Policy
from distrijax.parallel.specs import AXES
from distrijax.parallel.transport import AXIS


@dataclasses.dataclass(frozen=True)
class Parallel:
    """The way pictures are spread over a mesh of `data * cfg * patch` devices.

    Devices along the `patch` axis exchange most and should be closest together; those along `data` exchange nothing.

    Args:
        data: groups of devices that make different pictures of a batch.
        cfg: 2 gives each of the two guidance branches its own devices.
        patch: devices that share a picture, each holding a slab of its rows.
        mode: what is exchanged after the warm-up. In `predicted` (default) devices send what they expect to have in the
            next step, so that nothing waits; `halo_sync_up` and `halo_sync` also wait for the rows at the boundaries,
            of the up blocks with attention or of all layers. `full_sync` waits for all activations of the same step
            and matches one device. `corrected_async_gn`, `stale_gn`, `sync_gn`, `separate_gn` and `no_sync` are those
            of DistriFusion (arXiv 2402.19481): they use neighbours' activations of the previous step and differ in
            their group norms. `naive_patch` (no exchange at all) and `tensor` (weights sharded instead of rows) are
            baselines. `auto` chooses for each picture: the most exact mode that is estimated to wait for at most
            `max_waiting`.
        warmup_steps: number of synchronous steps after the first, before the displaced steps.
        emulate: run virtual devices on one real device: slower, but with the same picture as on real ones.
        devices: the devices to use; by default the first of `jax.devices()`.
        max_waiting: part of a step after the warm-up, from 0 to 1, that devices may wait in mode `auto`.

    Raises:
        DistrijaxError: an argument is invalid.
    """

    data: int = 1
    cfg: int = 1
    patch: int = 1
    mode: str = "predicted"
    warmup_steps: int = 4
    emulate: bool = False
    devices: tuple[jax.Device, ...] | None = None
    max_waiting: float = 0.05

    def __post_init__(self) -> None:
        for name in (*AXES, "warmup_steps"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=int(name in AXES)))
        if self.cfg > 2:
            raise DistrijaxError(f"cfg is {self.cfg}; there are two guidance branches, so it can be 1 or 2")
        one_of("mode", self.mode, (*MODES, TENSOR, AUTO))
        object.__setattr__(self, "max_waiting", finite_number("max_waiting", self.max_waiting, 0, 1))
        object.__setattr__(self, "emulate", true_or_false("emulate", self.emulate))
        object.__setattr__(self, "devices", _checked_devices(self.devices))
        if self.emulate and self.mode == TENSOR:
            raise DistrijaxError(
                "mode 'tensor' spreads weights over real devices and cannot be emulated; leave out emulate, or choose "
                "another mode, such as 'full_sync'"
            )
        if not self.emulate:
            self._check_devices()

    def _check_devices(self) -> None:
        present = len(jax.devices() if self.devices is None else self.devices)
        if self.size > present:
            raise DistrijaxError(
                f"data={self.data} x cfg={self.cfg} x patch={self.patch} takes {self.size} devices, but there are "
                f"{present}. Choose at most {present}, such as {_suggestion(present)}, or emulate=True to run them all "
                "on one"
            )
        idle = {d.process_index for d in jax.devices()} - {d.process_index for d in self._chosen}
        if idle:
            raise DistrijaxError(
                f"data={self.data} x cfg={self.cfg} x patch={self.patch} takes {self.size} of {present} devices, which "
                f"leaves process {min(idle)} without any; choose {_suggestion(present)}, or start fewer processes"
            )

    @classmethod
    def auto(cls, *, guided: bool = True, pictures: int = 1, devices: Sequence[jax.Device] | None = None) -> Self:
        """Use all devices: first for the pictures of a batch, then for guidance branches, then for rows.

        Args:
            guided: whether there is classifier-free guidance, that is, a guidance scale above 1.
            pictures: pictures in a batch.
            devices: the devices to use; by default all.
        """
        devices = _checked_devices(devices)
        count = len(jax.devices() if devices is None else devices)
        data = gcd(count, whole_number("pictures", pictures, least=1))
        cfg = 2 if true_or_false("guided", guided) and count // data % 2 == 0 else 1
        return cls(data, cfg, count // (data * cfg), devices=devices)

    @property
    def size(self) -> int:
        """Number of devices, real or virtual."""
        return self.data * self.cfg * self.patch

    @property
    def _chosen(self) -> Sequence[jax.Device]:
        return (jax.devices() if self.devices is None else self.devices)[: self.size]

    @cached_property
    def mesh(self) -> Mesh:
        """The real devices, with axes data, cfg and patch; a single device where they are emulated."""
        shape = (1, 1, 1) if self.emulate else (self.data, self.cfg, self.patch)
        # With several processes, each emulates for itself.
        devices = (self.devices or jax.local_devices())[:1] if self.emulate else self._chosen
        return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)

    def layout(self, height: int, multiple: int) -> SlabLayout:
        """Return the layout of `height` rows of latents on the devices, in multiples of `multiple`.

        Raises:
            DistrijaxError: there are too few rows for every device.
        """
        if self.mode == TENSOR or self.patch == 1:
            return SlabLayout(height, 1)
        most = -(-height // multiple)
        if self.patch > most:
            raise DistrijaxError(
                f"patch is {self.patch}, but the picture's latents are only {height} high, and each device takes "
                f"{multiple} rows or more; choose patch={most} or less, or a taller picture"
            )
        return SlabLayout(height, self.patch, multiple)

    def check(self, *, pictures: int, guided: bool, because: str = "there is no guidance") -> None:
        """Check that the axes suit a batch.

        Args:
            pictures: pictures in the batch.
            guided: whether there are two guidance branches.
            because: why there is only one, for the error message.

        Raises:
            DistrijaxError: there is no second guidance branch for cfg=2, or data does not divide the pictures.
        """
        if self.cfg > 1 and not guided:
            raise DistrijaxError(
                f"cfg is 2, but there is no second guidance branch: {because}; use cfg=1, patch={self.cfg * self.patch}"
            )
        if pictures % self.data:
            more = -(-pictures // self.data) * self.data
            raise DistrijaxError(
                f"{pictures} pictures cannot be divided among data={self.data} groups of devices; ask for {more}"
            )

    @property
    def policy(self) -> Policy:
        """The policy of the steps after the warm-up."""
        if self.mode == AUTO and self.patch > 1:
            raise DistrijaxError(
                "mode is 'auto', which is chosen for each picture when its size is known; name a mode here, such as "
                "'full_sync'"
            )
        return FULL_SYNC if self.patch == 1 else MODES.get(self.mode, FULL_SYNC)

    def phases(self, steps: int) -> list[tuple[int, Phase]]:
        """Return the phases of `steps` denoising steps and the number of steps in each."""
        return phases(self.policy, steps, self.warmup_steps)

    @cached_property
    def program_key(self) -> "Parallel":
        """The choices that compiled programs depend on, which exclude the numbers of warm-up steps and of waiting."""
        return dataclasses.replace(self, warmup_steps=0, max_waiting=0.0)

    @property
    def kernel_order(self) -> str:
        """The order of axes with which convolutions are fast on these devices.

        In a loop, XLA's CPU compiler transposes OHWI kernels in every step (jax 0.10, 8 times slower) or computes
        without its fast kernels (jax 0.12, 20 times slower). HWIO would cost a GPU a transposed copy for cuDNN.
        """
        return "HWIO" if self.mesh.devices.flat[0].platform == "cpu" else "OHWI"

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that is replicated on every device."""
        return NamedSharding(self.mesh, PartitionSpec())


@cache
def for_autoencoder(parallel: Parallel, *, encoding: bool = False) -> Parallel:
    """Return the same devices for the autoencoder: those of the guidance branches share the rows of a picture.

    Args:
        encoding: all devices share the rows of one picture.
    """
    data = 1 if encoding else parallel.data
    return dataclasses.replace(
        parallel, data=data, cfg=1, patch=parallel.size // data, mode="full_sync", warmup_steps=0, max_waiting=0.0
    )


def manual_axes(parallel: Parallel) -> set[str]:
    """Return the axes that `shard_map` handles; in mode `tensor`, GSPMD handles the patch axis."""
    return set(AXES) - ({AXIS} if parallel.mode == TENSOR else set())


def _checked_devices(devices: Sequence[jax.Device] | None) -> tuple[jax.Device, ...] | None:
    if devices is None:
        return None
    listed = list(devices) if isinstance(devices, Sequence | np.ndarray) else [devices]
    if not listed or not all(isinstance(d, jax.Device) for d in listed) or len(set(listed)) < len(listed):
        raise DistrijaxError(f"devices is {devices!r}; it must list one device or more, each of them once")
    return tuple(listed)


def _suggestion(devices: int) -> str:
    cfg = 2 if devices % 2 == 0 else 1
    return f"cfg={cfg} x patch={devices // cfg}"

"""The settings that the study compares: a `Setting` is one way to make the pictures of all prompts."""

import dataclasses
from collections.abc import Iterable
from itertools import product

from distrijax import Parallel
from distrijax.parallel.policies import MODES

ONE_DEVICE = "one_device"
MODES_COMPARED = tuple(MODES)
DISPLACED = tuple(mode for mode, policy in MODES.items() if policy.carries)
PATCHES, WARMUPS, STEPS, SCHEDULERS = (2, 4, 8), (0, 1, 2, 4, 8), (10, 25, 50), ("ddim", "euler")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to make the pictures.

    Attributes:
        mode: A mode of `Parallel`, or `ONE_DEVICE`.
        patch: Number of devices.
        warmup: Warm-up steps; None in modes without displaced steps, where they mean nothing.
        steps: Denoising steps.
        scheduler: Short name of the scheduler.
    """

    mode: str = "corrected_async_gn"
    patch: int = 4
    warmup: int | None = 4
    steps: int = 25
    scheduler: str = "ddim"

    def __post_init__(self) -> None:
        if self.mode not in DISPLACED:
            object.__setattr__(self, "warmup", None)

    @property
    def name(self) -> str:
        """A name for files and for `--only`, such as `stale_gn-n4-w4-s25-ddim`."""
        parts = [f"n{self.patch}"] * (self.mode != ONE_DEVICE) + [f"w{self.warmup}"] * (self.warmup is not None)
        return "-".join([self.mode, *parts, f"s{self.steps}", self.scheduler])

    @property
    def reference(self) -> "Setting":
        """The setting to compare with: one device, with the same steps and scheduler."""
        return Setting(ONE_DEVICE, 1, None, self.steps, self.scheduler)

    @property
    def parallel(self) -> Parallel:
        if self.mode == ONE_DEVICE:
            return Parallel()
        return Parallel(patch=self.patch, mode=self.mode, warmup_steps=self.warmup or 0, emulate=True)

    def but(self, **changes: object) -> "Setting":
        """Return this setting with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def in_proportion(self, steps: int) -> "Setting":
        """Return this setting with other steps, the same fraction of them synchronous (the first, and the warm-up)."""
        if self.warmup is None:
            return self.but(steps=steps)
        return self.but(steps=steps, warmup=max(0, round((self.warmup + 1) * steps / self.steps) - 1))


BASE = Setting()
QUICK = Setting(warmup=2, steps=10)


def around(base: Setting) -> list[Setting]:
    """Return every mode with every number of patches, and variations of `base` in one other factor at a time.

    Steps are varied twice: with the same warm-up, and with a warm-up in proportion.
    """
    settings = [base.but(mode=mode, patch=patch) for patch, mode in product(PATCHES, MODES_COMPARED)]
    settings += [base.but(warmup=warmup) for warmup in WARMUPS]
    settings += [s for count in STEPS for s in (base.but(steps=count), base.in_proportion(count))]
    settings += [base.but(scheduler=scheduler) for scheduler in SCHEDULERS]
    return with_references(settings)


def quick() -> list[Setting]:
    """Return the columns of the contact sheet and a few points of each curve."""
    settings = [QUICK.but(mode=mode) for mode in ("full_sync", "separate_gn", "naive_patch")]
    settings += [QUICK.but(patch=patch) for patch in PATCHES]
    settings += [QUICK.but(warmup=0), QUICK.but(steps=20)]
    return with_references(settings)


def full() -> list[Setting]:
    """Return all combinations of all factors."""
    axes = product(PATCHES, MODES_COMPARED, WARMUPS, STEPS, SCHEDULERS)
    return with_references(Setting(mode, n, warmup, steps, scheduler) for n, mode, warmup, steps, scheduler in axes)


def with_references(settings: Iterable[Setting]) -> list[Setting]:
    """Return each setting once, after the one-device setting that it is compared with."""
    return list(dict.fromkeys(s for setting in settings for s in (setting.reference, setting)))


def columns(base: Setting) -> list[Setting]:
    """Return the settings of the contact sheet."""
    displaced = [base.but(patch=patch) for patch in PATCHES]
    modes = [base.but(mode=mode) for mode in ("full_sync", "separate_gn", "naive_patch")]
    return [base.reference, modes[0], *displaced, *modes[1:]]


def vary_only(a: Setting, b: Setting, *factors: str) -> bool:
    """Return whether two settings are equal in everything except `factors`."""
    names = {field.name for field in dataclasses.fields(Setting)} - set(factors)
    return all(getattr(a, name) == getattr(b, name) for name in names)

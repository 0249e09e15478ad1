"""What is varied: one `Setting` makes one picture of every prompt."""

import dataclasses
from collections.abc import Iterable
from itertools import product

from distrijax import Parallel
from distrijax.parallel.mesh import MODES
from distrijax.parallel.slabs import DISPLACED

ONE, NAIVE = "one_device", "naive_patch"
SPREAD = tuple(mode for mode in MODES if mode != "tensor")  # tensor parallelism is exact, and cannot be emulated
PATCHES, WARMUPS, STEPS, SCHEDULERS = (2, 4, 8), (0, 1, 2, 4, 8), (10, 25, 50), ("ddim", "euler")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to make the pictures; `warmup` is None in modes without displaced steps, which know none."""

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
        """What `--only` matches and files are called, such as `stale_gn-n4-w4-s25-ddim`."""
        parts = [f"n{self.patch}"] * (self.mode != ONE) + [f"w{self.warmup}"] * (self.warmup is not None)
        return "-".join([self.mode, *parts, f"s{self.steps}", self.scheduler])

    @property
    def reference(self) -> "Setting":
        """One device with the same steps and scheduler: what the pictures are compared with."""
        return Setting(ONE, 1, None, self.steps, self.scheduler)

    @property
    def parallel(self) -> Parallel:
        if self.mode == ONE:
            return Parallel()
        return Parallel(patch=self.patch, mode=self.mode, warmup_steps=self.warmup or 0, emulate=True)

    def but(self, **changes: object) -> "Setting":
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def in_proportion(self, steps: int) -> "Setting":
        """The same with so many steps, of which as large a part is synchronous: the warm-up, and the first."""
        if self.warmup is None:
            return self.but(steps=steps)
        return self.but(steps=steps, warmup=max(0, round((self.warmup + 1) * steps / self.steps) - 1))


BASE = Setting()
QUICK = Setting(warmup=2, steps=10)


def around(
    base: Setting,
    patches: Iterable[int] = PATCHES,
    warmups: Iterable[int] = WARMUPS,
    steps: Iterable[int] = STEPS,
    schedulers: Iterable[str] = SCHEDULERS,
) -> list[Setting]:
    """Every mode with every number of patches, and the other factors of `base` one at a time.

    The steps twice: with the same warm-up, and with one in proportion.
    """
    settings = [base.but(mode=mode, patch=patch) for patch, mode in product(patches, SPREAD)]
    settings += [base.but(warmup=warmup) for warmup in warmups]
    settings += [s for count in steps for s in (base.but(steps=count), base.in_proportion(count))]
    settings += [base.but(scheduler=scheduler) for scheduler in schedulers]
    return with_references(settings)


def quick() -> list[Setting]:
    """The columns of the contact sheet and a few points of each curve; the numbers share what is compiled."""
    settings = [QUICK.but(mode=mode) for mode in ("full_sync", "separate_gn", NAIVE)]
    settings += [QUICK.but(patch=patch) for patch in PATCHES]
    settings += [QUICK.but(warmup=0), QUICK.but(steps=20)]
    return with_references(settings)


def full() -> list[Setting]:
    """The whole product."""
    axes = product(PATCHES, SPREAD, WARMUPS, STEPS, SCHEDULERS)
    return with_references(Setting(mode, n, warmup, steps, scheduler) for n, mode, warmup, steps, scheduler in axes)


def with_references(settings: Iterable[Setting]) -> list[Setting]:
    """Each once, after the one-device setting that it is compared with."""
    return list(dict.fromkeys(s for setting in settings for s in (setting.reference, setting)))


def columns(base: Setting) -> list[Setting]:
    """Those of the contact sheet."""
    displaced = [base.but(patch=patch) for patch in PATCHES]
    return [base.reference, base.but(mode="full_sync"), *displaced, base.but(mode="separate_gn"), base.but(mode=NAIVE)]

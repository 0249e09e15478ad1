"""The settings that the study compares: a `Setting` is one way to make the pictures of all prompts."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from distrijax import Parallel
from distrijax.parallel.policies import MODES

ONE_DEVICE = "one_device"
BASELINE = "corrected_async_gn"
"""The original's default, with which other modes are compared picture by picture."""
ORIGINAL = (BASELINE, "stale_gn", "sync_gn", "separate_gn", "no_sync", "full_sync", "naive_patch")
"""The modes of DistriFusion (arXiv 2402.19481); those that the library has beside them are its own."""

MODES_COMPARED = tuple(MODES)
DISPLACED = tuple(mode for mode, policy in MODES.items() if policy.carries)
OWN = tuple(mode for mode in MODES if mode not in ORIGINAL)
PATCHES = (2, 4, 8)

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to make the pictures.

    Attributes:
        mode: a mode of `Parallel`, or `ONE_DEVICE`.
        patch: number of devices that share the rows.
        warmup: warm-up steps; None in modes without displaced steps, where they mean nothing.
        steps: denoising steps.
        scheduler: a name that `scheduler_from_config` takes.
        guidance: guidance scale.
        height, width: of the pictures, in units of the size that the model was trained on.
        strength: how much of a picture to change, if the pictures start from others.
        dtype: of weights and arithmetic.
        cfg: 2 gives each guidance branch devices of its own.
    """

    mode: str = BASELINE
    patch: int = 4
    warmup: int | None = 4
    steps: int = 25
    scheduler: str = "ddim"
    guidance: float = 5.0
    height: float = 1.0
    width: float = 1.0
    strength: float | None = None
    dtype: str = "float32"
    cfg: int = 1

    def __post_init__(self) -> None:
        if self.mode not in DISPLACED:
            object.__setattr__(self, "warmup", None)

    @property
    def name(self) -> str:
        """A name for files and for `--only`, such as `stale_gn-n4-w4-s25-ddim-g7.5`; what is usual is left out."""
        usual = Setting()
        parts = [f"n{self.patch}"] * (self.mode != ONE_DEVICE) + [f"w{self.warmup}"] * (self.warmup is not None)
        parts += [f"s{self.steps}", self.scheduler]
        parts += [f"g{self.guidance:g}"] * (self.guidance != usual.guidance)
        parts += [f"{self.height:g}x{self.width:g}"] * ((self.height, self.width) != (usual.height, usual.width))
        parts += [f"i{self.strength}"] * (self.strength is not None)
        parts += [self.dtype] * (self.dtype != usual.dtype) + [f"cfg{self.cfg}"] * (self.cfg != usual.cfg)
        return "-".join([self.mode, *parts])

    @property
    def reference(self) -> "Setting":
        """The setting to compare with: one device, everything else the same."""
        return self.but(mode=ONE_DEVICE, patch=1, cfg=1)

    @property
    def start(self) -> "Setting | None":
        """The setting whose pictures these start from, each from that of the next prompt; None if from noise."""
        return None if self.strength is None else self.reference.but(strength=None)

    @property
    def parallel(self) -> Parallel:
        if self.mode == ONE_DEVICE:
            return Parallel()
        return Parallel(cfg=self.cfg, patch=self.patch, mode=self.mode, warmup_steps=self.warmup or 0, emulate=True)

    def pixels(self, size: Size) -> Size:
        """Return height and width in pixels, given those that the model was trained on."""
        height, width = (
            round(side * scale / 8) * 8 for side, scale in zip(size, (self.height, self.width), strict=True)
        )
        return height, width

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

Changes = Mapping[str, object]
SCHEDULERS = ("ddim", "euler", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "euler_ancestral", "lcm")
STEPS = ((4, 0), (4, 1), (6, 0), (6, 1), (10, 1), (10, 4), (25, 4), (50, 4), (50, 9))  # with their warm-up
SIZES = ((1, 1), (1.5, 1.5), (1, 2))

GROUPS: Mapping[str, tuple[Changes, ...]] = MappingProxyType(
    {
        "modes": tuple({"patch": patch} for patch in PATCHES),
        "warmup": tuple({"warmup": warmup} for warmup in (0, 1, 2, 4, 8)),
        "steps": tuple({"steps": steps, "warmup": warmup} for steps, warmup in STEPS),
        "guidance": tuple({"guidance": guidance} for guidance in (1.0, 5.0, 7.5)),
        "patches": tuple({"patch": patch} for patch in (2, 3, 4, 8)),
        "sizes": tuple({"height": height, "width": width} for height, width in SIZES),
        "dtypes": tuple({"dtype": dtype} for dtype in ("float32", "bfloat16")),
        "samplers": tuple({"scheduler": scheduler} for scheduler in SCHEDULERS),
        "starts": tuple({"strength": strength} for strength in (0.5, 0.8)),
        "cfg": tuple({"cfg": cfg} for cfg in (1, 2)),
    }
)
"""What each table varies: changes of the base setting. `modes` compares all modes, the others those of --modes."""

ROBUSTNESS = tuple(group for group in GROUPS if group != "modes")


def modes_of(group: str, chosen: Sequence[str] | None) -> tuple[str, ...]:
    """Return the modes that a group compares, the baseline first: those `chosen`, or by default the library's own."""
    modes = chosen or (MODES_COMPARED if group == "modes" else OWN)
    return tuple(dict.fromkeys([BASELINE, *modes]))


def grouped(base: Setting, groups: Iterable[str], chosen: Sequence[str] | None) -> list[Setting]:
    """Return the settings of some groups."""
    names = list(groups)
    return with_references(
        base.but(**changes, mode=mode) for g in names for changes in GROUPS[g] for mode in modes_of(g, chosen)
    )


def quick(base: Setting, chosen: Sequence[str] | None) -> list[Setting]:
    """Return the columns of the contact sheet and a few points of each curve."""
    modes = chosen or ("full_sync", *OWN, "separate_gn", "naive_patch")
    settings = [base.but(mode=mode) for mode in (BASELINE, *modes)]
    settings += [base.but(patch=patch) for patch in PATCHES]
    settings += [base.but(warmup=0), base.but(steps=20)]
    return with_references(settings)


def with_references(settings: Iterable[Setting]) -> list[Setting]:
    """Return each setting once, after the one-device settings that it starts from and is compared with."""
    needed = (s for setting in settings for s in (setting.start, setting.reference, setting) if s is not None)
    return list(dict.fromkeys(needed))


def vary_only(a: Setting, b: Setting, *factors: str) -> bool:
    """Return whether two settings are equal in everything except `factors`."""
    names = {field.name for field in dataclasses.fields(Setting)} - set(factors)
    return all(getattr(a, name) == getattr(b, name) for name in names)

"""The results of a study, in memory and on disk: what has been measured is not computed again."""

import dataclasses
import json
from pathlib import Path

from distrijax import DistrijaxError
from quality_study.settings import MODES_COMPARED, ONE_DEVICE, Setting


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What is measured of the pictures of one setting.

    Attributes:
        problems: Number of problems that the judge finds in each picture; empty if it cannot tell.
        broken: Indices of pictures that are black or not finite.
        psnr: PSNR of each picture in dB; empty for a reference, and if a picture is broken.
        ssim, lpips: the same of other metrics; `lpips` is empty, too, if no package has it.
        made: how it came about: commit, date, seconds and so on.
    """

    problems: list[int]
    broken: list[int]
    psnr: list[float] = dataclasses.field(default_factory=list)
    ssim: list[float] = dataclasses.field(default_factory=list)
    lpips: list[float] = dataclasses.field(default_factory=list)
    made: dict[str, str | float] = dataclasses.field(default_factory=dict)

    @property
    def correct(self) -> int:
        """Number of pictures without problems."""
        return self.problems.count(0)

    @property
    def mean_psnr(self) -> float:
        return sum(self.psnr) / len(self.psnr)

    @property
    def mean_ssim(self) -> float:
        return sum(self.ssim) / len(self.ssim)


Measurements = dict[Setting, Measurement]


@dataclasses.dataclass(frozen=True)
class Check:
    """Pictures of one mode with the smallest patches, in half precision.

    Attributes:
        height: Height of the pictures.
        patch: Number of devices.
        dtype: Data type of the model.
        deviation: Standard deviation of the pixels, the least of all pictures.
        broken: Indices of pictures that are black or not finite.
    """

    height: int
    patch: int
    dtype: str
    deviation: float
    broken: list[int]


class Results:
    """The file `results.json` of a folder, written after every measurement.

    Args:
        study: Everything that all measurements depend on: model, prompts and so on.

    Attributes:
        measurements: By setting.
        checks: By mode.

    Raises:
        DistrijaxError: The file is of another study.
    """

    def __init__(self, folder: Path, study: dict[str, str | int | float]):
        self.path, self.study = folder / "results.json", study
        self.measurements: Measurements = {}
        self.checks: dict[str, Check] = {}
        if not self.path.exists():
            return
        try:
            content = json.loads(self.path.read_text())
            there = dict(content["study"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DistrijaxError(
                f"{self.path} cannot be read ({error}); choose another --out, or use --restart"
            ) from None
        if there != study:
            different = [k for k in there | study if there.get(k) != study.get(k)]
            each = "; ".join(f"{k} is {there.get(k)!r} there, {study.get(k)!r} here" for k in different)
            raise DistrijaxError(f"{self.path} is of another study: {each}. Choose another --out, or use --restart")
        for entry in content["measurements"]:
            if entry["setting"]["mode"] in (ONE_DEVICE, *MODES_COMPARED):  # others are of another commit
                self.measurements[Setting(**entry["setting"])] = Measurement(**entry["measurement"])
        self.checks = {mode: Check(**check) for mode, check in content["checks"].items()}

    def add(self, setting: Setting, measurement: Measurement) -> None:
        self.measurements[setting] = measurement
        self._save()

    def add_check(self, mode: str, check: Check) -> None:
        self.checks[mode] = check
        self._save()

    def _save(self) -> None:
        as_dict = dataclasses.asdict
        entries = [{"setting": as_dict(s), "measurement": as_dict(m)} for s, m in self.measurements.items()]
        checks = {mode: as_dict(check) for mode, check in self.checks.items()}
        content = {"study": self.study, "measurements": entries, "checks": checks}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")  # an interrupted write must not lose an hour's measurements
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        partial.replace(self.path)

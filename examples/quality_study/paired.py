"""Tables of differences that are paired by picture: each mode against the baseline, everything else equal."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from quality_study.results import Measurement, Measurements
from quality_study.settings import BASELINE, GROUPS, Changes, Setting, Size, modes_of

METRICS = {"psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 4), "lpips": ("LPIPS", 4)}
"""Heading and decimals of each list of a `Measurement`."""
LOWER_IS_BETTER = frozenset({"lpips"})


@dataclasses.dataclass(frozen=True)
class Paired:
    """What the pictures of one setting have on average over those of another with the same prompts and seeds.

    Attributes:
        mean: of the differences.
        error: standard error of the mean; infinite for a single picture.
        better: number of pictures with a higher value.
        count: number of pictures.
    """

    mean: float
    error: float
    better: int
    count: int

    @classmethod
    def of(cls, values: Sequence[float], others: Sequence[float]) -> "Paired":
        difference = np.subtract(values, others, dtype=np.float64)
        count = len(difference)
        error = float(difference.std(ddof=1) / np.sqrt(count)) if count > 1 else float("inf")
        return cls(float(difference.mean()), error, int((difference > 0).sum()), count)

    def text(self, decimals: int) -> str:
        """Return the mean with its standard error, as in +4.33 ± 0.54."""
        error = f" ± {self.error:.{decimals}f}" if np.isfinite(self.error) else ""
        return f"{self.mean:+.{decimals}f}{error}"


def group_table(group: str, measurements: Measurements, base: Setting, chosen: Sequence[str] | None, size: Size) -> str:
    """Return the Markdown table of a group, or "" if nothing of it has been measured.

    Args:
        size: height and width of the pictures that the model was trained on, in pixels.
    """
    modes = modes_of(group, chosen)
    rows = [(describe(c, size), mode, base.but(**c, mode=mode)) for c in GROUPS[group] for mode in modes]
    return table(group, rows, measurements)


def table(heading: str, rows: Iterable[tuple[str, str, Setting]], measurements: Measurements) -> str:
    """Return a Markdown table of settings, described and with their modes, the baseline first in each description.

    A description whose baseline has not been measured is left out: it has nothing to be compared with. Without any
    description there is no column for them, and the heading is that of the modes.
    """
    found = [(text, mode, measurements[setting]) for text, mode, setting in rows if setting in measurements]
    baselines = {text: m for text, mode, m in found if mode == BASELINE}
    found = [row for row in found if row[0] in baselines]
    if not found:
        return ""
    metrics = [name for name in METRICS if any(getattr(m, name) for *_, m in found)]
    described = any(text for text, *_ in found)
    head = [heading, "mode"] if described else [heading]
    for name in metrics:
        head += [METRICS[name][0], "difference"] + (["better", "worst"] if name == "psnr" else [])
    lines = [head, ["---"] * len(head)]
    for text, mode, m in found:
        cells = [text if mode == BASELINE else ""] * described + [f"`{mode}`"]
        if m.broken:
            cells.append(f"**broken pictures: {', '.join(map(str, m.broken))}**")
        else:
            for name in metrics:
                cells += _cells(name, m, None if mode == BASELINE else baselines[text])
        lines.append(cells + [""] * (len(head) - len(cells)))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(name: str, m: Measurement, baseline: Measurement | None) -> list[str]:
    """Return a metric's mean and difference; for PSNR, how many pictures are better, and the worst one, too."""
    values, decimals = getattr(m, name), METRICS[name][1]
    others = getattr(baseline, name) if baseline is not None else []
    if not values:
        return ["", ""] + ["", ""] * (name == "psnr")
    pair = Paired.of(values, others) if others else None
    cells = [f"{np.mean(values):.{decimals}f}", pair.text(decimals) if pair else ""]
    if name == "psnr":
        cells += [f"{pair.better} of {pair.count}" if pair else "", f"{min(values):.1f}"]
    return cells


UNITS = {
    "patch": "{} patches",
    "warmup": "warm-up {}",
    "steps": "{} steps",
    "guidance": "guidance {:g}",
    "scheduler": "{}",
    "strength": "strength {}",
    "dtype": "{}",
    "cfg": "cfg={}",
}


def describe(changes: Changes, size: Size) -> str:
    """Return what a setting of a group is, as in "10 steps, warm-up 1"."""
    texts = [UNITS[name].format(value) for name, value in changes.items() if name in UNITS]
    if "height" in changes:
        texts.append("x".join(map(str, Setting().but(**changes).pixels(size))))
    return ", ".join(texts)

"""The table, and whether what one expects of displaced patches shows."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np

from distrijax.parallel.slabs import DISPLACED
from quality_study.settings import NAIVE, ONE, SPREAD, Setting

Rows = dict[Setting, dict[str, Any]]

FAR = 3.0  # dB: what "far worse" means
VERDICTS = ("does not hold", "undecided", "holds")
SURE = 2.0  # standard errors of the mean difference; less is called undecided
FRESHER = (("sync_gn", "corrected_async_gn"), ("corrected_async_gn", "stale_gn"))  # moments of group norms
FRESH = tuple(mode for mode in DISPLACED if mode != "no_sync")  # those that hear of their neighbours in every step


@dataclasses.dataclass(frozen=True)
class Expectation:
    """That `better` is nearer to its one-device pictures than `worse`, by `margin` dB at least."""

    claim: str
    better: Setting
    worse: Setting
    margin: float = 0.0


def expectations(rows: Rows) -> Iterator[Expectation]:
    """All that can be asked of these rows: pairs that differ in one factor, neighbours in it where it is a number."""
    for s in rows:
        if s.mode == NAIVE:
            others = [o for o in rows if o.mode not in (ONE, NAIVE) and same(o, s, "mode", "warmup")]
            yield from (Expectation("naive is far worst", o, s, FAR) for o in others)
        if s.mode == "separate_gn":
            for mode in ("corrected_async_gn", "stale_gn"):
                if s.but(mode=mode) in rows:
                    yield Expectation("separate is worse than stale and corrected", s.but(mode=mode), s)
        for better, worse in FRESHER:
            if s.mode == better and s.but(mode=worse) in rows:
                yield Expectation("the fresher the moments, the better", s, s.but(mode=worse))
        if s.mode not in (ONE, "full_sync") and (more := following(rows, s, "patch")):
            yield Expectation("falls with the number of patches", s, more)
        if s.mode in DISPLACED and (more := following(rows, s, "warmup")):
            yield Expectation("rises with warm-up", more, s)
        if s.mode in FRESH and (more := following(rows, s, "steps")):
            yield Expectation("rises with steps, the warm-up the same", more, s)
        if s.mode in FRESH and (more := following_in_proportion(rows, s)):
            yield Expectation("rises with steps, the warm-up in proportion", more, s)


def same(a: Setting, b: Setting, *apart_from: str) -> bool:
    names = [f.name for f in dataclasses.fields(Setting) if f.name not in apart_from]
    return all(getattr(a, n) == getattr(b, n) for n in names)


def following(rows: Rows, setting: Setting, factor: str) -> Setting | None:
    """The setting with the next larger value of one factor, all else the same."""
    value = getattr(setting, factor)
    larger = [s for s in rows if same(s, setting, factor) and getattr(s, factor) > value]
    return min(larger, key=lambda s: getattr(s, factor), default=None)


def following_in_proportion(rows: Rows, setting: Setting) -> Setting | None:
    """The setting with the next larger number of steps, of which as large a part is synchronous, all else the same."""
    steps = sorted({s.steps for s in rows if s.steps > setting.steps})
    return next((s for s in map(setting.in_proportion, steps) if s in rows), None)


def judge(rows: Rows, expected: Expectation) -> tuple[str, float, float]:
    """One of VERDICTS; the mean difference in dB, prompt by prompt, and its standard error."""
    pair = [np.array(rows[s]["each"]["psnr"]) for s in (expected.better, expected.worse)]
    difference = pair[0] - pair[1]
    mean = float(difference.mean())
    error = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else float("inf")
    above = mean - expected.margin
    verdict = "undecided" if abs(above) < SURE * error else "holds" if above > 0 else "does not hold"
    return verdict, mean, error


def table(rows: Rows, prompts: int) -> str:
    """One line a setting, as Markdown."""
    lines = [
        "| mode | patches | warm-up | steps | scheduler | PSNR, dB | SSIM | obeyed | faults a picture |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    modes = (ONE, *SPREAD)
    order = sorted(rows, key=lambda s: (s.scheduler, s.steps, modes.index(s.mode), s.patch, s.warmup or 0))
    for s in order:
        row = rows[s]
        alike = [f"{row['psnr']:.2f}", f"{row['ssim']:.4f}"] if "psnr" in row else ["–", "–"]
        obeyed = f"{row['obeyed']} of {prompts}"
        warmup = "–" if s.warmup is None else s.warmup
        cells = [s.mode, s.patch, warmup, s.steps, s.scheduler, *alike, obeyed, f"{row['problems']:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def matrix(rows: Rows, base: Setting) -> str:
    """Modes by patches, the rest as in `base`, as Markdown: PSNR and SSIM."""
    patches = sorted({s.patch for s in rows if s.mode != ONE})
    lines = ["| PSNR / SSIM | " + " | ".join(f"{n} patches" for n in patches) + " |", "|---" * (len(patches) + 1) + "|"]
    for mode in SPREAD:
        found = [rows.get(base.but(mode=mode, patch=n), {}) for n in patches]
        cells = [f"{row['psnr']:.2f} dB / {row['ssim']:.4f}" if "psnr" in row else "" for row in found]
        if any(cells):
            lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def order(rows: Rows) -> str:
    """What was expected, how often it shows, and every case, those first in which it does not."""
    compared = {s: row for s, row in rows.items() if "psnr" in row}
    judged = [(e, *judge(compared, e)) for e in expectations(compared)]
    claims = list(dict.fromkeys(e.claim for e, *_ in judged))
    judged.sort(key=lambda each: (claims.index(each[0].claim), VERDICTS.index(each[1])))
    lines = []
    for claim, each in groupby(judged, key=lambda each: each[0].claim):
        cases = list(each)
        counts = Counter(verdict for _, verdict, *_ in cases)
        lines.append(f"- **{claim}**: " + ", ".join(f"{v} in {counts[v]}" for v in reversed(VERDICTS) if counts[v]))
        for e, verdict, mean, error in cases:
            least = f", at least {e.margin:g} expected" if e.margin else ""
            lines.append(f"  - {verdict}: {e.better.name} minus {e.worse.name} is {mean:+.2f} ± {error:.2f} dB{least}")
    return "\n".join(lines) or "Nothing to compare yet."


def broken(rows: Rows, checks: dict[str, dict[str, Any]]) -> list[str]:
    """Settings and checks with a black or non-finite picture."""
    names = [f"{s.name}: pictures {row['broken']}" for s, row in rows.items() if row["broken"]]
    return names + [
        f"{mode}, smallest patches, bfloat16: pictures {c['broken']}" for mode, c in checks.items() if c["broken"]
    ]


def report(study: dict[str, Any], base: Setting, rows: Rows, checks: dict[str, dict[str, Any]]) -> str:
    bad = broken(rows, checks)
    sound = "\n".join(f"- **{name}**" for name in bad) or (
        f"None in {len(rows)} settings of {study['prompts']} pictures"
        + "".join(
            f", nor in {c['dtype']} at {c['height']} pixels over {c['patch']} patches"
            for c in list(checks.values())[:1]
        )
        + (f" ({', '.join(checks)})." if checks else ".")
    )
    about = ", ".join(f"{name} {value}" for name, value in study.items())
    return f"""# What patches do to the picture

Each picture is compared with that of one device of the same prompt, seed, steps and scheduler; means over prompts.
"Obeyed" counts the pictures in which the demo's judge finds no fault. The study: {about}.

## Modes and patches

{base.steps} steps, warm-up {base.warmup}, {base.scheduler}.

{matrix(rows, base)}

## Expected order

Differences of PSNR, prompt by prompt, with their standard error; below {SURE:g} errors it is undecided.

{order(rows)}

## Black or non-finite pictures

{sound}

## All settings

{table(rows, study["prompts"])}
"""

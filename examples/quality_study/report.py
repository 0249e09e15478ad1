"""The report: paired tables of every group, all measurements, and which expectations hold."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from quality_study import metrics
from quality_study.expectations import SIGNIFICANT, VERDICTS, expectations, judge
from quality_study.paired import describe, group_table, table
from quality_study.results import Check, Measurements, Results
from quality_study.settings import BASELINE, GROUPS, MODES_COMPARED, ONE_DEVICE, Setting, Size, modes_of

TITLES = {
    "modes": "Every mode, by the number of devices",
    "warmup": "Warm-up steps",
    "steps": "Steps, with their warm-up",
    "guidance": "Guidance scale",
    "patches": "Devices",
    "sizes": "Size of the picture, height and width",
    "dtypes": "Data type of weights and arithmetic",
    "samplers": "Samplers",
    "starts": "Pictures that start from others",
    "cfg": "Devices of their own for each guidance branch",
}


def everything(measurements: Measurements, prompts: int) -> str:
    """Return a Markdown table with one line for each setting."""
    lines = [
        "| setting | PSNR, dB | SSIM | correct | problems per picture | seconds | made by |",
        "|---|---|---|---|---|---|---|",
    ]
    modes = (ONE_DEVICE, *MODES_COMPARED)
    for s in sorted(measurements, key=lambda s: (s.reference.name, modes.index(s.mode), s.patch, s.warmup or 0)):
        m = measurements[s]
        similarity = [f"{m.mean_psnr:.2f}", f"{m.mean_ssim:.4f}"] if m.psnr else ["–", "–"]
        correct = [f"{m.correct} of {prompts}", f"{sum(m.problems) / prompts:.2f}"] if m.problems else ["–", "–"]
        made = ", ".join(str(m.made[key]) for key in ("commit", "date") if key in m.made)
        cells = [f"`{s.name}`", *similarity, *correct, m.made.get("seconds", "–"), made]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def groups(measurements: Measurements, base: Setting, chosen: Sequence[str] | None, size: Size) -> str:
    """Return the tables of all groups of which more than one row of the baseline has been measured."""
    sections = []
    for group, title in TITLES.items():
        if group == "modes":
            text = by_devices(measurements, base, chosen)
        elif sum(base.but(**changes) in measurements for changes in GROUPS[group]) > 1:
            text = group_table(group, measurements, base, chosen, size)
        else:
            continue
        if text:
            sections.append(f"### {title}\n\n{text}")
    return "\n\n".join(sections)


def by_devices(measurements: Measurements, base: Setting, chosen: Sequence[str] | None) -> str:
    """Return a table of the modes for each number of devices."""
    tables = []
    for changes in GROUPS["modes"]:
        rows = [("", mode, base.but(**changes, mode=mode)) for mode in modes_of("modes", chosen)]
        tables.append(table(describe(changes, (0, 0)), rows, measurements))
    return "\n\n".join(filter(None, tables))


def order(measurements: Measurements) -> str:
    """Return a Markdown list of all expectations, with every case, those that do not hold first."""
    compared = {s: m for s, m in measurements.items() if m.psnr}
    judged = [(e, *judge(compared, e)) for e in expectations(compared)]
    claims = list(dict.fromkeys(e.claim for e, *_ in judged))
    judged.sort(key=lambda case: (claims.index(case[0].claim), VERDICTS.index(case[1])))
    lines = []
    for claim, group in groupby(judged, key=lambda case: case[0].claim):
        cases = list(group)
        counts = Counter(verdict for _, verdict, *_ in cases)
        lines.append(f"- **{claim}**: " + ", ".join(f"{v} in {counts[v]}" for v in reversed(VERDICTS) if counts[v]))
        for e, verdict, mean, error in cases:
            margin = f", at least {e.margin:g} expected" if e.margin else ""
            lines.append(f"  - {verdict}: {e.better.name} minus {e.worse.name} is {mean:+.2f} ± {error:.2f} dB{margin}")
    return "\n".join(lines) or "Nothing to compare yet."


def broken(measurements: Measurements, checks: dict[str, Check]) -> list[str]:
    """Return a description of each setting and check with a black or non-finite picture."""
    names = {s.name: m.broken for s, m in measurements.items()}
    names |= {f"{mode}, smallest patches, {check.dtype}": check.broken for mode, check in checks.items()}
    return [f"{name}: pictures {indices}" for name, indices in names.items() if indices]


def sound(measurements: Measurements, checks: dict[str, Check], prompts: int) -> str:
    """Return which pictures are broken."""
    if faults := broken(measurements, checks):
        return "\n".join(f"- **{fault}**" for fault in faults)
    text = f"None in {len(measurements)} settings with {prompts} pictures each"
    if checks:
        check = next(iter(checks.values()))
        text += f", nor in {check.dtype} with a height of {check.height} pixels and {check.patch} patches"
        text += f" ({', '.join(checks)})"
    return text + "."


def lpips_note(measurements: Measurements) -> str:
    """Return whose LPIPS was measured, or why there is none."""
    compared = [m for m in measurements.values() if m.psnr]
    origins = {str(m.made["lpips"]) for m in compared if m.lpips and "lpips" in m.made}
    missing = sum(not m.lpips for m in compared)
    return ". ".join([*sorted(origins), *([metrics.lpips()[1]] if missing or not compared else [])]) + "."


def report(results: Results, base: Setting, chosen: Sequence[str] | None, prompts: int, size: Size) -> str:
    """Return the whole report as Markdown.

    Args:
        chosen: the modes that are compared, if not the default ones.
        prompts: number of pictures of a setting.
        size: height and width of the pictures that the model was trained on.
    """
    measurements, checks = results.measurements, results.checks
    study = ", ".join(f"{name}: {value}" for name, value in results.study.items())
    commits = sorted({str(m.made["commit"]) for m in measurements.values() if "commit" in m.made})
    return f"""# How patches change the picture

Each picture is compared with that of one device with the same prompt, seed, steps and everything else; values are means
over pictures. {lpips_note(measurements)}

"Difference" is that from `{BASELINE}` in the rows of the same setting, paired
by picture, with its standard error; "better" counts the pictures with a higher PSNR, and "worst" is the lowest PSNR.
Study: {study}. Commits: {", ".join(commits)}.

## Tables

Unless a table says otherwise: {base.patch} patches, {base.steps} steps, warm-up {base.warmup}, {base.scheduler},
guidance {base.guidance:g}, {base.dtype}, {size[0]}x{size[1]} pixels.

{groups(measurements, base, chosen, size) or "Nothing has been measured yet."}

## Expectations

Differences of PSNR, paired by picture, with standard errors; below {SIGNIFICANT:g} standard errors they are undecided.

{order(measurements)}

## Black or non-finite pictures

{sound(measurements, checks, prompts)}

## All settings

"Correct" counts the pictures in which the judge of the demo world finds no problem.

{everything(measurements, prompts)}
"""

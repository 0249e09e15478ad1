"""The report: tables of all measurements, and which expectations hold."""

from collections import Counter
from itertools import groupby

from quality_study.expectations import SIGNIFICANT, VERDICTS, expectations, judge
from quality_study.results import Check, Measurements, Results
from quality_study.settings import MODES_COMPARED, ONE_DEVICE, Setting


def table(measurements: Measurements, prompts: int) -> str:
    """Return a Markdown table with one line for each setting."""
    lines = [
        "| mode | patches | warm-up | steps | scheduler | PSNR, dB | SSIM | correct | problems per picture |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    modes = (ONE_DEVICE, *MODES_COMPARED)
    for s in sorted(measurements, key=lambda s: (s.scheduler, s.steps, modes.index(s.mode), s.patch, s.warmup or 0)):
        m = measurements[s]
        similarity = [f"{m.mean_psnr:.2f}", f"{m.mean_ssim:.4f}"] if m.psnr else ["–", "–"]
        warmup = "–" if s.warmup is None else s.warmup
        correct, problems = f"{m.correct} of {prompts}", f"{sum(m.problems) / len(m.problems):.2f}"
        cells = [s.mode, s.patch, warmup, s.steps, s.scheduler, *similarity, correct, problems]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def matrix(measurements: Measurements, base: Setting) -> str:
    """Return a Markdown table of PSNR and SSIM, modes by patches, everything else as in `base`."""
    patches = sorted({s.patch for s in measurements if s.mode != ONE_DEVICE})
    lines = ["| PSNR / SSIM | " + " | ".join(f"{n} patches" for n in patches) + " |", "|---" * (len(patches) + 1) + "|"]
    for mode in MODES_COMPARED:
        line = [measurements.get(base.but(mode=mode, patch=n)) for n in patches]
        cells = [f"{m.mean_psnr:.2f} dB / {m.mean_ssim:.4f}" if m and m.psnr else "" for m in line]
        if any(cells):
            lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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


def report(results: Results, base: Setting) -> str:
    """Return the whole report as Markdown."""
    measurements, checks, prompts = results.measurements, results.checks, int(results.study["prompts"])
    if faults := broken(measurements, checks):
        sound = "\n".join(f"- **{fault}**" for fault in faults)
    else:
        sound = f"None in {len(measurements)} settings with {prompts} pictures each"
        if checks:
            check = next(iter(checks.values()))
            sound += f", nor in {check.dtype} with a height of {check.height} pixels and {check.patch} patches"
            sound += f" ({', '.join(checks)})"
        sound += "."
    study = ", ".join(f"{name} {value}" for name, value in results.study.items())
    return f"""# How patches change the picture

Each picture is compared with that of one device with the same prompt, seed, steps and scheduler; values are means over
prompts. "Correct" counts the pictures in which the judge of the demo world finds no problem. Study: {study}.

## Modes and patches

{base.steps} steps, warm-up {base.warmup}, {base.scheduler}.

{matrix(measurements, base)}

## Expectations

Differences of PSNR, paired by prompt, with standard errors; below {SIGNIFICANT:g} standard errors they are undecided.

{order(measurements)}

## Black or non-finite pictures

{sound}

## All settings

{table(measurements, prompts)}
"""

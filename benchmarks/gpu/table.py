"""Make the tables of the documentation from what GPUs measured.

    python benchmarks/gpu/table.py                             # after a change of the tables
    python benchmarks/gpu/table.py results/measured.json       # with a run more

A run is kept as docs/measurements/CARD-DATE.json, with a page beside it that has all of its tables; docs/performance.md
has the steps of each. Tables stand between two comments, and what is written around them stays.
"""

import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- made by benchmarks/gpu/table.py -->", "<!-- end -->"
Run = dict[str, Any]


def main(arguments: Sequence[str]) -> None:
    for file in map(Path, arguments):
        keep(json.loads(file.read_text()))
    for page, text in pages().items():
        page.write_text(text)


def keep(run: Run) -> Path:
    """Store a run under the name of its card and its date, and make its page unless there is one."""
    card = re.sub(r"NVIDIA |GeForce |Tesla ", "", run["stages"]["card"]["machine"]["device"]).split()[0].lower()
    file = DOCS / "measurements" / f"{card}-{run['date']}.json"
    file.write_text(json.dumps(run, indent=1) + "\n")
    if not file.with_suffix(".md").exists():
        file.with_suffix(".md").write_text(f"# {title(run)}\n\n{BEGIN}\n{END}\n")
    return file


def pages() -> dict[Path, str]:
    """Return the pages with today's tables in them, by path."""
    files = sorted((DOCS / "measurements").glob("*-????-??-??.json"))
    runs = {file.with_suffix(".md"): json.loads(file.read_text()) for file in files}
    summary = [
        f"{title(run)} ([all of it](measurements/{page.name})):\n\n{steps_table(run['stages'])}"
        for page, run in runs.items()
    ]
    texts = {DOCS / "performance.md": summary}
    for page, run in runs.items():
        stages = run["stages"]
        tables = (steps_table, kinds_table, longest_table, variants_table, pictures_table, remains)
        texts[page] = [versions(run), *(table(stages) for table in tables)]
    return {page: replaced(page.read_text(), "\n\n".join(filter(None, parts))) for page, parts in texts.items()}


def replaced(page: str, tables: str) -> str:
    """Return a page with other tables between its comments."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page[:40]!r}... has no place for tables; write {BEGIN} and {END} where they belong")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def title(run: Run) -> str:
    return f"{run['stages']['card']['machine']['device']}, {run['date']}"


def versions(run: Run) -> str:
    card = run["stages"]["card"]
    names = ", ".join(f"{name} {version}" for name, version in sorted(card["machine"]["versions"].items()))
    rates = f"{card['product_flops'] / 1e12:.0f} TFLOP/s in a large bf16 product, {card['copy_bytes'] / 1e12:.2f} TB/s"
    return f"Commit {run['commit']}; {names}. The card reaches {rates} in a copy."


def steps_table(stages: Run) -> str:
    """Return a table of steps: one card and shares by size, diffusers beside, and the least that the FLOPs take."""
    sizes = sorted({int(name.split(",")[0]) for name in stages if re.fullmatch(r"\d+, one( of \d+)?", name)})
    one = {size: stages.get(f"{size}, one", {}) for size in sizes}
    peers = {size: _peers(stages, size) for size in sizes}
    lines = {"distrijax, one card": [_times(one[size]) for size in sizes]}
    for name in dict.fromkeys(name for by_name in peers.values() for name in by_name):
        lines[f"{name}, one card"] = [_times(peers[size].get(name, {})) for size in sizes]
    flops = stages["card"]["product_flops"]
    lines["what the FLOPs of a step take at the card's best"] = [
        f"{1000 * one[size]['planned_flops'] / flops:.1f}" if one[size].get("planned_flops") else "" for size in sizes
    ]
    for devices in (2, 4, 8):
        shares = [stages.get(f"{size}, one of {devices}", {}) for size in sizes]
        lines[f"distrijax, what one of {devices} computes, without a network"] = list(map(_times, shares))
    lines["speed-up of one of 8, if every transfer hid"] = [
        f"{_median(one[size]) / _median(share):.1f}" if one[size].get("step_ms") and share.get("step_ms") else ""
        for size, share in zip(sizes, shares, strict=True)
    ]
    head = ["a step of SDXL base with guidance, ms", *(f"{size}x{size}" for size in sizes)]
    return _table(head, ([name, *cells] for name, cells in lines.items() if any(cells)))


def kinds_table(stages: Run) -> str:
    """Return a table of kernels by kind, of each step whose kernels were counted."""
    names = [name for name in stages if re.fullmatch(r"\d+, one( of \d+)?(, by operation)?", name)]
    counted = {name: stages[name].get("kernels", stages[name]) for name in names}
    counted = {name: kernels for name, kernels in counted.items() if "kinds" in kernels}
    kinds = list(dict.fromkeys(kind for kernels in counted.values() for kind in kernels["kinds"]))
    rows = [[kind, *(_kernels(kernels["kinds"].get(kind)) for kernels in counted.values())] for kind in kinds]
    rows.append(["all", *map(_kernels, counted.values())])
    return _table(["kernels of a step: ms, launches, ms by the plan", *counted], rows) if counted else ""


def longest_table(stages: Run) -> str:
    """Return a table of the longest kernels of each profile by operation."""
    rows = [
        [name.removesuffix(", by operation"), row["layer"], f"`{row['kernel']}`", _kernels(row)]
        for name, stage in stages.items()
        for row in stage.get("longest", [])
    ]
    return _table(["step", "layer", "kernel", "ms, launches, ms by the plan"], rows) if rows else ""


def variants_table(stages: Run) -> str:
    """Return a table of the variants, beside the default in the same run."""
    rows = [
        [
            name,
            f"{statistics.median(stage['default_step_ms']):.2f}",
            f"{_median(stage):.2f}",
            f"{stage['relative_time']:.3f}",
            _kernels(stage["kernels"]),
            f"{stage['relative_difference']:.1e}",
        ]
        for name, stage in stages.items()
        if "relative_time" in stage
    ]
    head = ["variant", "default, ms", "variant, ms", "relative", "kernels: ms, launches, plan", "difference of latents"]
    return _table(head, rows) if rows else ""


def pictures_table(stages: Run) -> str:
    """Return a table of the seconds to a process's first picture, and of a later one, by part."""
    firsts = {name: stage for name, stage in stages.items() if "to_first_picture" in stage}
    parts = list(dict.fromkeys(part for stage in firsts.values() for part in stage["to_first_picture"]))
    rows = [
        [part, *(f"{stage['to_first_picture'][part]:.1f}" for stage in firsts.values())]
        + [f"{stage['picture'][part]:.2f}" if part in stage["picture"] else "" for stage in firsts.values()]
        for part in parts
    ]
    head = ["seconds, 1024x1024, 30 steps", *firsts, *(f"later, {name}" for name in firsts)]
    return _table(head, rows) if rows else ""


def remains(stages: Run) -> str:
    """Return what is correct, and what has no figures and why."""
    lines = []
    for name, stage in stages.items():
        agreement = ", ".join(f"{key} {value} dB" for key, value in stage.get("decibels", {}).items())
        distance = ", ".join(f"{key} {value:.1e}" for key, value in stage.get("relative_distance", {}).items())
        if agreement or distance:
            lines.append(f"- {name}: {agreement or distance}")
        for what in ("error", "plan_error", "profile_error"):
            if what in stage:
                lines.append(f"- {name} failed: `{stage[what].strip().splitlines()[-1][:150]}`")
        if not stage.get("finite", True):
            lines.append(f"- {name}: numbers that are not finite")
    skipped = [name for name, stage in stages.items() if "skipped" in stage]
    return "\n".join(lines + [f"- no time was left for: {'; '.join(skipped)}"] * bool(skipped))


def _peers(stages: Run, size: int) -> dict[str, Run]:
    """Return the steps in diffusers, by mode, of all stages of this size."""
    beside = [stage for name, stage in stages.items() if name.startswith(f"{size}, diffusers")]
    return {
        name: value
        for stage in beside
        for name, value in stage.items()
        if name.startswith("diffusers") and isinstance(value, dict)
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _times(stage: Run) -> str:
    """Return the median, and the range where it is wide."""
    times = stage.get("step_ms")
    if not times:
        return ""
    digits = 0 if min(times) >= 100 else 1
    spread = f" ({min(times):.{digits}f} to {max(times):.{digits}f})" if max(times) > 1.05 * min(times) else ""
    return f"{_median(stage):.{digits}f}{spread}"


def _median(stage: Run) -> float:
    return statistics.median(stage["step_ms"])


def _kernels(row: Run | None) -> str:
    if row is None:
        return ""
    planned = row.get("planned_milliseconds")
    return f"{row['milliseconds']:.2f}, {row['launches']:.0f}" + (f", {planned:.2f}" if planned is not None else "")


if __name__ == "__main__":
    main(sys.argv[1:])

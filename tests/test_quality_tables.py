"""The tables of the quality study: differences that are paired by picture, the report, and the expectations."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from quality_helpers import measured
from quality_study import expectations, paired, report, results
from quality_study.paired import Paired
from quality_study.results import Measurement
from quality_study.settings import BASE, GROUPS, Setting


def test_a_row_says_what_it_varies() -> None:
    rows = [
        paired.describe(changes, (1024, 512)) for group in ("steps", "guidance", "sizes") for changes in GROUPS[group]
    ]
    assert {"4 steps, warm-up 0", "50 steps, warm-up 9", "guidance 7.5", "1536x768", "1024x1024"} <= set(rows)
    assert len(set(rows)) == len(rows)
    assert paired.describe({"warmup": 8}, (0, 0)) == "warm-up 8"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_everything() -> None:
    made = {"commit": "c0ffee", "date": "2027-01-02", "seconds": 9.5}
    base = dataclasses.replace(measured(31.0, 32.0, 33.0), made=made)
    measurements = {BASE: base, BASE.reference: measured(), BASE.but(mode="stale_gn"): Measurement([], [1])}
    header, _, *rows = map(cells, report.everything(measurements, 3).splitlines())
    assert rows == [
        ["`one_device-s25-ddim`", "–", "–", "1 of 3", "1.00", "–", ""],
        ["`corrected_async_gn-n4-w4-s25-ddim`", "32.00", "0.9000", "1 of 3", "1.00", "9.5", "c0ffee, 2027-01-02"],
        ["`stale_gn-n4-w4-s25-ddim`", "–", "–", "–", "–", "–", ""],
    ]
    assert {len(row) for row in rows} == {len(header)}


def test_differences_are_paired() -> None:
    """Pictures differ by much more than the modes do, and each is compared with itself."""
    pair = Paired.of([21.0, 42.0, 29.0, 12.0], [20.0, 40.0, 30.0, 10.0])
    assert (pair.mean, pair.better, pair.count) == (1.0, 3, 4)
    assert pair.error == pytest.approx(np.sqrt(2) / 2)  # differences 1, 2, -1, 2: a deviation of sqrt(2) over sqrt(4)
    assert pair.text(2) == "+1.00 ± 0.71"
    assert Paired.of([1.0], [3.0]).text(1) == "-2.0"


def test_a_table_has_differences_from_the_baseline_of_the_same_setting() -> None:
    few = BASE.but(warmup=0)
    measurements = {
        few: measured(20.0, 30.0),
        few.but(mode="stale_gn"): measured(19.0, 33.0),
        BASE: measured(30.0, 40.0),
        BASE.but(mode="stale_gn"): measured(32.0, 44.0),
        BASE.but(mode="full_sync"): Measurement([], [1]),
    }
    lines = paired.group_table("warmup", measurements, BASE, ["stale_gn", "full_sync"], (256, 256)).splitlines()
    assert lines[1] == "| " + " | ".join(["---"] * 8) + " |"
    header, _, *rows = map(cells, lines)
    assert header == ["warmup", "mode", "PSNR, dB", "difference", "better", "worst", "SSIM", "difference"]
    assert rows == [
        ["warm-up 0", "`corrected_async_gn`", "25.00", "", "", "20.0", "0.9000", ""],
        ["", "`stale_gn`", "26.00", "+1.00 ± 2.00", "1 of 2", "19.0", "0.9000", "+0.0000 ± 0.0000"],
        ["", "`full_sync`", "**broken pictures: 1**", "", "", "", "", ""],
        ["warm-up 4", "`corrected_async_gn`", "35.00", "", "", "30.0", "0.9000", ""],
        ["", "`stale_gn`", "38.00", "+3.00 ± 1.00", "2 of 2", "32.0", "0.9000", "+0.0000 ± 0.0000"],
        ["", "`full_sync`", "**broken pictures: 1**", "", "", "", "", ""],
    ]


def test_without_the_baseline_nothing_is_compared() -> None:
    """Least of all with that of another setting."""
    measurements = {BASE.but(warmup=0): measured(20.0), BASE.but(mode="stale_gn"): measured(25.0)}
    rows = paired.group_table("warmup", measurements, BASE, ["stale_gn"], (256, 256)).splitlines()[2:]
    assert [cells(row)[:2] for row in rows] == [["warm-up 0", "`corrected_async_gn`"]]


def test_lpips_is_in_the_table_if_it_was_measured() -> None:
    better = dataclasses.replace(measured(31.0, 32.0), lpips=[0.1, 0.2])
    measurements = {
        BASE: dataclasses.replace(measured(30.0, 31.0), lpips=[0.2, 0.4]),
        BASE.but(mode="stale_gn"): better,
    }
    header, _, _, row = map(cells, report.by_devices(measurements, BASE, ["stale_gn"]).splitlines())
    assert header[-2:] == ["LPIPS", "difference"]
    assert row[-2:] == ["0.1500", "-0.1500 ± 0.0500"]


def test_the_report_has_a_section_for_each_group_that_varies() -> None:
    measurements = {BASE: measured(30.0, 31.0), BASE.but(patch=8): measured(28.0, 29.0)}
    measurements |= {BASE.but(height=1.5, width=1.5): measured(30.0, 31.0), BASE.but(mode="full_sync"): measured(120.0)}
    text = report.groups(measurements, BASE, None, (1024, 512))
    titles = [line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")]
    assert titles == [report.TITLES[group] for group in ("modes", "patches", "sizes")]
    assert "| 4 patches | PSNR, dB |" in text
    assert "| 8 patches | PSNR, dB |" in text
    assert "| 1536x768 | `corrected_async_gn`" in text


def verdicts(measurements: results.Measurements, better: Setting, worse: Setting) -> list[str]:
    """The verdicts on one pair of settings."""
    pairs = [e for e in expectations.expectations(measurements) if (e.better, e.worse) == (better, worse)]
    return [expectations.judge(measurements, e)[0] for e in pairs]


def test_expectations_hold_or_not() -> None:
    naive, separate = BASE.but(mode="naive_patch"), BASE.but(mode="separate_gn")
    measurements = {
        BASE: measured(30.0, 31.0, 32.0),
        naive: measured(20.0, 21.5, 22.0),  # 10 below
        separate: measured(31.0, 32.1, 32.9),  # 1 above: contrary to the expectation
        BASE.but(patch=2): measured(33.0, 34.1, 35.0),
        BASE.but(steps=50): measured(31.0, 32.2, 33.0),
        BASE.but(patch=8): measured(29.0, 33.0, 31.0),  # equal on average
        BASE.but(warmup=8): measured(30.5, 31.4, 32.6),
    }
    pairs = {
        (BASE, naive): "holds",
        (separate, naive): "holds",
        (BASE, separate): "does not hold",
        (BASE.but(patch=2), BASE): "holds",
        (BASE, BASE.but(patch=8)): "undecided",
        (BASE.but(steps=50), BASE): "holds",
        (BASE.but(warmup=8), BASE): "holds",
    }
    assert {pair: verdicts(measurements, *pair) for pair in pairs} == {pair: [v] for pair, v in pairs.items()}
    assert not verdicts(measurements, BASE.but(patch=2), BASE.but(patch=8))  # they are not neighbours
    text = report.order(measurements)
    assert f"{BASE.name} minus {separate.name} is -1.00 ± 0.06 dB" in text


def test_warm_up_with_more_steps() -> None:
    """A warm-up of 9 of 50 steps is as long in proportion as 4 of 25: each pair has an expectation of its own."""
    more, in_proportion = BASE.but(steps=50), BASE.in_proportion(50)
    measurements = {
        BASE: measured(30.0, 31.0, 32.0),
        more: measured(31.0, 32.2, 33.0),
        in_proportion: measured(29.1, 30.0, 31.2),
    }
    assert in_proportion.warmup == 9
    assert verdicts(measurements, more, BASE) == ["holds"]
    assert verdicts(measurements, in_proportion, BASE) == ["does not hold"]
    assert verdicts(measurements, in_proportion, more) == ["does not hold"]


def test_far_means_three_decibels() -> None:
    naive = BASE.but(mode="naive_patch")
    measurements = {BASE: measured(30.0, 31.0, 32.0), naive: measured(28.0, 29.1, 29.9)}
    assert verdicts(measurements, BASE, naive) == ["does not hold"]


def test_cases_are_listed_by_verdict() -> None:
    measurements = {
        BASE: measured(30.0, 31.0, 32.0),
        BASE.but(mode="sync_gn"): measured(31.1, 32.0, 33.2),
        BASE.but(mode="stale_gn"): measured(29.0, 32.0, 32.5),
    }
    text = report.order(measurements | {BASE.reference: measured()})  # a reference has nothing to be compared with
    assert text.index("undecided: corrected_async_gn-n4-w4") < text.index("holds: sync_gn-n4-w4")


def test_a_table_of_halos_beside_what_they_wait() -> None:
    """In a process of its own, since the script adds modes: the more parts wait for halos, the longer a step waits."""
    code = """
import halos
from quality_helpers import measured
from quality_study.settings import BASE
values = {BASE.but(mode=mode): measured(30.0 + i, 31.0 + i) for i, mode in enumerate(halos.COMPARED)}
print(halos.table(values))
alone = halos.waiting("halos of up_blocks.0")
all_up = halos.waiting("halos of up_blocks.0, up_blocks.1, up_blocks.2, conv_out")
assert all(less < more for less, more in zip(alone, all_up, strict=True)), (alone, all_up)
predicted, every = halos.waiting("predicted"), halos.waiting("halo_sync")
assert all(a <= b <= c for a, b, c in zip(predicted, alone, every, strict=True)), (predicted, alone, every)
"""
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent / "examples"), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.strip().splitlines()]
    assert len(rows) == 2 + 17
    assert rows[2][:3] == ["| `corrected_async_gn`", "30.5", ""]
    assert rows[3][:3] == ["| `predicted`", "31.5", "+1.0 ± 0.0"]

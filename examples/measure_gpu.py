"""Measure what one GPU can tell about distrijax, within some minutes.

    python examples/measure_gpu.py --minutes 9 --out results
    python examples/measure_gpu.py --out results --stages "1024, one; 1024, diffusers, reduce-overhead"
    python examples/measure_gpu.py --list

Stages run in order of what is least known. Each is written to DIR/measured.json when it ends, or its traceback is; one
that would take longer than the time left is skipped. The same command again goes on with what has no figures yet.
Without a GPU, or with --tiny, a tiny model shows within two minutes whether every kind of stage runs. Then

    python benchmarks/gpu/table.py results/measured.json

keeps the figures in docs/measurements and makes the tables in docs/performance.md.
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from gpu.driver import drive, work
from gpu.results import Results
from gpu.setup import Setup
from gpu.stages import OF_EACH_KIND, STAGES, table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="nothing runs longer (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--stages", metavar="NAME; ...", help="only these and the card, of those that --list prints")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, as without a GPU")
    parser.add_argument("--list", action="store_true", help="print the stages with the seconds that each should take")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # given to the processes that run the stages
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{stage.seconds:5.0f} s  {name}" for name, stage in STAGES.items()))
        return
    names = [name.strip() for name in options.stages.split(";")] if options.stages else []
    if unknown := [name for name in names if name not in STAGES]:
        parser.error(f"--stages: there is no {unknown[0]!r}; --list prints them all")
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out.resolve())
    if options.until:
        tiny = options.tiny or jax.default_backend() != "gpu"
        work(table(tiny=tiny), names, Setup(results, tiny), options.until)
    else:
        measure(names, results, time.time() + 60 * options.minutes, tiny=options.tiny)


def measure(names: Sequence[str], results: Results, deadline: float, *, tiny: bool) -> None:
    """Run stages in other processes until the deadline, the card's first."""
    results.write(date=datetime.date.today().isoformat(), commit=_commit())
    with tempfile.TemporaryDirectory() as programs:
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": programs, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # diffusers needs some of the memory too
        command = [sys.executable, __file__, "--out", str(results.folder), "--until", str(deadline)]
        command += ["--tiny"] * tiny
        drive({"card": table(tiny=tiny)["card"]}, command, results, deadline)
        tiny = tiny or not results.stages["card"].get("gpu", True)
        chosen = names or (OF_EACH_KIND if tiny else STAGES)
        stages = {name: stage for name, stage in table(tiny=tiny).items() if name in chosen}
        drive(stages, command, results, deadline)
    for name, value in results.stages.items():
        failure = value.get("skipped") or value.get("error", "").strip().rpartition("\n")[2]
        print(f"{name}: {failure or 'measured'}")


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()

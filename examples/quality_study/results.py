"""The rows of a study on disk: what is there is not computed again."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from distrijax.errors import DistrijaxError
from quality_study.settings import Setting


class Results:
    """`results.json` of a folder, written after every row.

    Args:
        study: all on which every row depends: model, prompts, ... Rows of another study are not to be mixed in.

    Raises:
        DistrijaxError: the file is of another study.
    """

    def __init__(self, folder: Path, study: dict[str, Any]):
        self.path, self.study = folder / "results.json", study
        self.rows: dict[Setting, dict[str, Any]] = {}
        self.checks: dict[str, dict[str, Any]] = {}  # by mode
        if not self.path.exists():
            return
        found = json.loads(self.path.read_text())
        if found["study"] != study:
            other = [k for k in found["study"] | study if found["study"].get(k) != study.get(k)]
            each = "; ".join(f"{k} is {found['study'].get(k)!r} there, {study.get(k)!r} here" for k in other)
            raise DistrijaxError(f"{self.path} is of another study: {each}. Choose another --out, or begin with --anew")
        names = [field.name for field in dataclasses.fields(Setting)]
        self.rows = {Setting(**{n: row[n] for n in names}): row for row in found["rows"]}
        self.checks = {check["mode"]: check for check in found["checks"]}

    def add(self, setting: Setting, row: dict[str, Any]) -> None:
        self.rows[setting] = dataclasses.asdict(setting) | row
        self.save()

    def add_check(self, mode: str, check: dict[str, Any]) -> None:
        self.checks[mode] = {"mode": mode} | check
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"study": self.study, "rows": list(self.rows.values()), "checks": list(self.checks.values())}
        half = self.path.with_suffix(".part")  # an interrupted write must not cost the rows of an hour
        half.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        half.replace(self.path)

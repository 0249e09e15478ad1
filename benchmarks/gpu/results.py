"""The results of a run: one JSON file, written again whenever a stage begins or ends."""

import json
from pathlib import Path
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

RUNNING = {"running": True}


class Results:
    """The file, of which one process at a time is the writer.

    Attributes:
        folder: for the file, the log and what stages write besides.
    """

    def __init__(self, folder: Path):
        self.folder, self.file, self.log = folder, folder / "measured.json", folder / "log.txt"

    def read(self) -> Json:
        return json.loads(self.file.read_text()) if self.file.exists() else {"stages": {}}

    @property
    def stages(self) -> Json:
        """What each stage measured; `RUNNING` while it runs."""
        return self.read()["stages"]

    def put(self, stage: str, value: Json) -> None:
        self.write(stages=self.stages | {stage: value})

    def forget_failures(self) -> None:
        """Remove the stages that have no figures."""
        useless = {"error", "skipped", "running"}
        self.write(stages={name: value for name, value in self.stages.items() if not useless & value.keys()})

    def write(self, **entries: object) -> None:
        """Replace some of the file's entries, all at once: whoever ends this process leaves a whole file."""
        beside = self.file.with_suffix(".new")
        beside.write_text(json.dumps(self.read() | entries, indent=1) + "\n")
        beside.replace(self.file)

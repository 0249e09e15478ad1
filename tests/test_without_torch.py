"""Nothing at run time needs torch or diffusers: the demo makes its picture where they cannot be imported."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys

for name in ("torch", "diffusers", "matplotlib"):
    sys.modules[name] = None  # as if it were not installed
from distrijax.cli import main

sys.exit(main(["generate", "a red circle above a blue square", "--steps", "2", "--output", "picture.png"]))
"""


def test_the_demo_runs_without_torch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "picture.png\n"
    assert (tmp_path / "picture.png").stat().st_size > 1000
    assert "preparing denoising" in done.stderr + done.stdout

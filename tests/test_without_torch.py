"""Nothing at run time needs torch, diffusers or optax: the demo makes its picture where they cannot be imported."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "diffusers", "matplotlib"}:
            raise ModuleNotFoundError(f"{name} must not be imported", name=name)

sys.meta_path.insert(0, Refuse())
import distrijax
from distrijax.cli import main

assert main(["generate", "a red circle above a blue square", "--steps", "2", "--output", "picture.png"]) == 0
assert not {"torch", "diffusers", "matplotlib"} & set(sys.modules)
"""


def test_the_demo_runs_without_torch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "picture.png\n"
    assert (tmp_path / "picture.png").stat().st_size > 1000
    assert "compiling denoising" in done.stderr + done.stdout

"""The full SDXL base U-Net against torch, with random weights: 10 GB of memory, 10 GB of disk, some ten minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "full_size_step.py"


@pytest.mark.slow
def test_full_unet_step(tmp_path: Path) -> None:
    results = {}
    for framework in ("torch", "jax"):  # one in memory at a time
        done = subprocess.run(
            [sys.executable, str(SCRIPT), framework, str(tmp_path)], check=True, capture_output=True, text=True
        )
        results[framework] = json.loads(done.stdout.splitlines()[-1])
        print(framework, results[framework])
    assert results["torch"]["std"] > 0.1
    assert results["jax"]["relative L2"] <= 1e-5

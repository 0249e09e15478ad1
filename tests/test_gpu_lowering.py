"""Every program lowers for GPUs: in half precision they take paths, such as cuDNN's attention, that no CPU takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distrijax.tools.plan.gpus import missing_compiler

pytestmark = [
    pytest.mark.cuda_compiler,
    pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler())),
]


def test_every_program_lowers() -> None:
    script = Path(__file__).with_name("lower_for_gpus.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    failures = json.loads(done.stdout)
    assert len(failures) > 50
    assert {case: error for case, error in failures.items() if error} == {}

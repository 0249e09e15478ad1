"""Conversion of a full-size SDXL base model (random fp16 weights, 6.9 GB): peak memory and time.

Left out of the default run: it writes 21 GB to the disk and takes minutes. Run it with
`pytest -n 0 -m slow tests/test_checkpoint_memory.py -rP`, which prints what it measured.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_checkpoint import write_tokenizer

from distrijax.checkpoint import Component
from distrijax.checkpoint.hub import weight_names
from distrijax.checkpoint.tensors import read_safetensors, write_safetensors

CONFIGS = {"unet": "base_unet", "vae": "vae", "text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2"}
LARGEST = 2_567_463_684 * 2  # bytes of the U-Net in fp16

MEASURE = """
import json, resource, sys, time
start = time.time()
from distrijax.checkpoint import convert, export, load
import_seconds, start = time.time() - start, time.time()
if sys.argv[1] == "load":
    load(sys.argv[2], progress=False)
else:
    {"convert": convert, "export": export}[sys.argv[1]](sys.argv[2], sys.argv[3], progress=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": time.time() - start, "peak": peak}))
"""


def packaged(name: str) -> dict[str, Any]:
    return json.loads((resources.files("distrijax.checkpoint") / "configs" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("full")
    (folder / "base" / "scheduler").mkdir(parents=True)
    (folder / "base" / "model_index.json").write_text(json.dumps(packaged("base_model_index")))
    (folder / "base" / "scheduler" / "scheduler_config.json").write_text(json.dumps(packaged("scheduler")))
    noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(np.float16)
    for name, config in CONFIGS.items():
        (folder / "base" / name).mkdir()
        (folder / "base" / name / "config.json").write_text(json.dumps(packaged(config)))
        component = Component.from_json(name, packaged(config), name)
        table, layout = component.table(), {}
        for path, shape in component.shapes.items():
            entry = table.to_torch(path)
            layout[entry.name] = tuple(shape[axis] for axis in entry.axes), np.dtype(np.float16)

        def arrays(layout: dict[str, Any] = layout) -> Iterator[tuple[str, np.ndarray]]:
            for number, (key, (shape, _)) in enumerate(layout.items()):
                yield key, np.resize(np.roll(noise, number), shape)

        write_safetensors(folder / "base" / name / weight_names(name, None)[0], layout, arrays())
    write_tokenizer(folder / "base" / "tokenizer", "<|endoftext|>")
    write_tokenizer(folder / "base" / "tokenizer_2", "!")
    yield folder / "base"
    shutil.rmtree(folder)


def measure(*arguments: Any) -> dict[str, float]:
    begin = time.time()
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{arguments[0]}: {result['seconds']:.0f} s ({time.time() - begin:.0f} s with imports), "
          f"peak {result['peak'] / 1e9:.2f} GB = {result['peak'] / LARGEST:.2f} of the U-Net")  # fmt: skip
    return result


@pytest.mark.slow
def test_full_size_conversion_streams(base: Path) -> None:
    converted, back = base.parent / "converted", base.parent / "back"
    assert measure("convert", base, converted)["peak"] <= 1.5 * LARGEST
    assert measure("export", converted, back)["peak"] <= 1.5 * LARGEST
    for name in CONFIGS:
        file = f"{name}/{weight_names(name, None)[0]}"
        ours, theirs = read_safetensors(back / file), read_safetensors(base / file)
        assert list(ours) == list(theirs)
        assert all((ours[key].load().view(np.uint16) == theirs[key].load().view(np.uint16)).all() for key in theirs)
    # All four models in memory, 6.9 GB, and the host's copy of a batch: far from twice as much.
    assert measure("load", converted)["peak"] <= 1.25 * 6.94e9
    assert measure("load", base)["peak"] <= 1.25 * 6.94e9

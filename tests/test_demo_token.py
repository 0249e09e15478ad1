"""The word that is part of the package: the demo model draws what it was trained on, and only with its vectors."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from distrijax import StableDiffusionXLPipeline

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from demo_world import judge

EXAMPLES = Path(__file__).parents[1] / "examples"
PROMPTS = ["sun above a blue square", "a red star to the left of sun"]


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_token", EXAMPLES / "train_token.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_model_draws_a_sun(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained("demo", progress=False)
    call = {"num_inference_steps": 12, "seed": [0, 2], "output_type": "np"}
    meant = [prompt.replace("sun", "a large yellow circle") for prompt in PROMPTS]

    def wrong() -> int:
        pictures = np.rint(pipe(PROMPTS, **call).images * 255).astype(np.uint8)
        return len(judge.failures(pictures, meant))

    assert wrong() == 2
    pipe.load_textual_inversion("demo")
    assert list(pipe.tokenizer.added) == ["sun", "sun_1"]
    assert wrong() == 0


def test_examples_have_the_word() -> None:
    """What the word is trained on: it stands where the caption has the words for what it means."""
    train_token = example()
    source = train_token.examples(0)
    for _ in range(20):
        text, picture = next(source)
        assert "yellow circle" not in text
        assert text.count("sun") == 1
        assert not judge.failures(picture[None], [text.replace("sun", "a large yellow circle")])

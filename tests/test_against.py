"""`benchmarks/against.py`: other implementations get the same weights and inputs, and predict the same."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from parallel_helpers import UNET

from distrijax import DistrijaxError, Parallel
from distrijax.checkpoint import Checkpoint, Component, find
from distrijax.tools.bench import weights
from distrijax.tools.workload import Workload

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import against
import peer_diffusers
import peer_maxdiffusion

TINY = UNET | {"projection_class_embeddings_input_dim": 8 + 6 * 4}


@pytest.fixture(scope="module")
def case() -> Workload:
    return tiny_workload(TINY)


def tiny_workload(config: dict[str, object], height: int = 32) -> Workload:
    vae = Component.from_json("vae", find("demo").components["vae"].json, "test")
    components = {"unet": Component.from_json("unet", config, "test"), "vae": vae}
    model, scale = Checkpoint("tiny", components, {}, {}, {}), vae.config.scale_factor
    return Workload(model, height=height * scale, width=16 * scale, dtype="float32")


def test_diffusers_beside_predicts_the_same_from_the_same_memory(case: Workload) -> None:
    arrays = weights.arrays(case.model, "unet", "float32", Parallel().replicated)
    functions, distances = against.compare(case, arrays, ["diffusers"], torch_modes=())
    assert distances["diffusers, relative L2 distance"] < 1e-5
    assert set(functions) == {"distrijax", "diffusers"}
    assert functions["distrijax"].compile_seconds
    path = next(path for path in arrays if path.endswith("conv_in.kernel"))
    seen = peer_diffusers.tensor(arrays[path], (0, 2, 3, 1))
    assert seen.data_ptr() == arrays[path].unsafe_buffer_pointer()
    assert seen.shape == tuple(arrays[path].shape[i] for i in (0, 3, 1, 2))


def test_maxdiffusion_beside_predicts_the_same(case: Workload) -> None:
    pytest.importorskip("maxdiffusion", reason="maxdiffusion is installed from its repository only")
    with pytest.raises(DistrijaxError, match="32 groups, those of tiny do not"):
        peer_maxdiffusion.check(case)
    config = TINY | {"block_out_channels": [32, 32, 64], "norm_num_groups": 32}
    case = tiny_workload(config)
    arrays = weights.arrays(case.model, "unet", "float32", Parallel().replicated)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        peer_maxdiffusion.check(case)
        functions, distances = against.compare(case, arrays, ["maxdiffusion"], torch_modes=())
    assert 1e-6 < distances["maxdiffusion, relative L2 distance"] < 1e-3  # its tanh GELU and its epsilon
    assert set(functions) == {"distrijax", "maxdiffusion"}


def test_parameters_have_the_names_of_maxdiffusion() -> None:
    name = "down_blocks.1.attentions.0.transformer_blocks.9.attn2.to_out.0.weight"
    renamed = peer_maxdiffusion.renamed(name, 2)
    assert "/".join(renamed) == "down_blocks_1/attentions_0/transformer_blocks_9/attn2/to_out_0/kernel"
    assert peer_maxdiffusion.renamed("conv_norm_out.weight", 1) == ("conv_norm_out", "scale")
    assert peer_maxdiffusion.renamed("conv_in.bias", 1) == ("conv_in", "bias")


@pytest.mark.parametrize("name", ["diffusers", "maxdiffusion"])
def test_a_peer_that_is_not_installed_is_told_with_the_cure(
    name: str, case: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (peer_diffusers, peer_maxdiffusion):
        monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(DistrijaxError, match=f"compare with {name}.*pip install"):
        against.PEERS[name].check(case)


def test_bf16_weights_reach_torch_as_they_are() -> None:
    x = jnp.asarray([[1.5, -2.25, 3e-5]], jnp.bfloat16)
    assert peer_diffusers.tensor(x, (1, 0)).float().numpy().T.tolist() == x.astype(jnp.float32).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("--peers flax", "diffusers, maxdiffusion"), ("--height 100", "multiple of 8"), ("--model nothing", "sdxl-base")],
)
def test_mistakes(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        against.main(arguments.split())
    assert message in capsys.readouterr().err


def test_the_script(case: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against, "workload", lambda *_, **__: case)
    written = tmp_path / "against.json"
    against.main(f"--model tiny --runs 2 --json {written}".split())
    report = json.loads(written.read_text())
    assert [(line["name"], len(line["seconds"])) for line in report["measurements"]] == [
        ("distrijax", 2), ("diffusers", 2)
    ]  # fmt: skip
    first, second = (sorted(line["seconds"]) for line in report["measurements"])
    ratio = report["facts"]["diffusers, time relative to distrijax"]
    assert ratio == pytest.approx(sum(second) / sum(first))  # the median of two is their mean

"""Files that are not what they should be: a clear error of one line (or one list), and never a pickle load."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_checkpoint import base_pipeline
from safetensors.torch import load_file, save_file

from distrijax.checkpoint import convert, load, open_source
from distrijax.checkpoint.hub import component_patterns, pipeline_patterns
from distrijax.checkpoint.tables import SHOWN, unet_table, vae_table
from distrijax.checkpoint.tensors import read_safetensors, write_safetensors
from distrijax.errors import DistrijaxError

UNET = "unet/diffusion_pytorch_model.safetensors"
INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    base_pipeline(folder / "tokenizers").save_pretrained(folder / "base")
    return folder / "base"


@pytest.fixture
def base(pristine: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return shutil.copytree(pristine, tmp_path / "base")


@pytest.fixture(autouse=True)
def no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a pickle was loaded")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)


def refused(source: Any, *parts: str, **options: Any) -> str:
    """The message of opening `source`, which has every one of `parts`."""
    with pytest.raises(DistrijaxError) as caught:
        open_source(source, **options)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    return message


def change(file: Path, edit: Callable[[Any], Any]) -> None:
    if file.suffix == ".json":
        file.write_text(json.dumps(edit(json.loads(file.read_text()))))
    else:
        save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def without(*names: str) -> Callable[[dict], dict]:
    return lambda values: {name: value for name, value in values.items() if name not in names}


BROKEN_FILES: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "empty": (lambda data: b"", ("the file is empty",)),
    "cut in the weights": (lambda data: data[:-1000], ("truncated", "download or copy it again")),
    "cut in the header": (lambda data: data[:500], ("truncated", "download or copy it again")),
    "cut after six bytes": (lambda data: data[:6], ("not a safetensors file",)),
    "with something behind": (lambda data: data + b"\0" * 8, ("corrupted", "download or copy it again")),
    "noise": (lambda data: bytes(range(256)) * 100, ("not a safetensors file",)),
    "zeros": (lambda data: bytes(len(data)), ("not a safetensors file",)),
    "a header of noise": (lambda data: data[:8] + b"\xff" * 100 + data[108:], ("not a safetensors file, or",)),
    "a damaged header": (lambda data: data[:80] + b'"}"' + data[83:], ("corrupted", "invalid JSON in header")),
    "a zip": (lambda data: b"PK\x03\x04" + data, ("a PyTorch pickle", "never read")),
    "a pickle": (lambda data: pickle.dumps({"a": 1}), ("not a safetensors file",)),
    "a legacy pickle": (lambda data: pickle.dumps({"a": 1}, 2) + b"." * 100, ("a Python pickle", "never read")),
    "a git lfs pointer": (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha2", ("git lfs pull",)),
    "a web page": (lambda data: b"<!doctype html><html><body>404</body></html>", ("a web page",)),
    "gguf": (lambda data: b"GGUF\x03\0\0\0" + bytes(100), ("a GGUF file",)),
}


@pytest.mark.parametrize("fault", BROKEN_FILES)
def test_broken_weight_files(fault: str, base: Path, tmp_path: Path) -> None:
    damage, parts = BROKEN_FILES[fault]
    (base / UNET).write_bytes(damage((base / UNET).read_bytes()))
    message = refused(base, str(base / UNET), *parts)
    assert "\n" not in message
    shutil.copy(base / UNET, tmp_path / "single.safetensors")
    assert "\n" not in refused(tmp_path / "single.safetensors", *parts)
    with pytest.raises(DistrijaxError):
        convert(base, tmp_path / "target", progress=False)
    assert not (tmp_path / "target").exists()


def header(file: Path, edit: Callable[[dict], Any]) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    values = json.loads(data[8 : 8 + length])
    text = json.dumps(edit(values) or values).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: h["conv_in.bias"].update(dtype="F4"),
        lambda h: h["conv_in.bias"].update(dtype="nonsense"),
        lambda h: h["conv_in.bias"].update(shape=[31]),
        lambda h: h["conv_in.bias"].update(shape=[-32]),
        lambda h: h["conv_in.bias"].update(shape="x"),
        lambda h: h["conv_in.bias"].update(data_offsets=[0, 128]),
        lambda h: h["conv_in.bias"].update(data_offsets=[1 << 40, (1 << 40) + 128]),
        lambda h: h.update({"conv_in.bias": 3}),
        lambda h: [1],
    ],
)
def test_inconsistent_headers(edit: Callable[[dict], Any], base: Path) -> None:
    header(base / UNET, edit)
    assert "\n" not in refused(base, "corrupted", str(base / UNET))


def test_a_name_twice_in_a_header(base: Path) -> None:
    data = (base / UNET).read_bytes()
    text = data[8 : 8 + int.from_bytes(data[:8], "little")]
    doubled = text.rstrip()[:-1] + b',"conv_in.bias":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    (base / UNET).write_bytes(len(doubled).to_bytes(8, "little") + doubled + data[8 + len(text) :])
    refused(base, "corrupted", str(base / UNET))


def test_changed_while_being_read(base: Path) -> None:
    opened = open_source(base)
    with open(base / UNET, "r+b") as file:
        file.truncate(10_000)
    with pytest.raises(DistrijaxError, match="was it changed while being read"):
        list(opened.components["unet"].stream())
    (base / UNET).unlink()
    with pytest.raises(DistrijaxError, match="cannot be read"):
        list(opened.components["unet"].stream())


def test_one_error_lists_every_fault(base: Path) -> None:
    def edit(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state["extra.weight"] = torch.zeros(2, 3)
        state["down_blocks.1.resnets.7.conv1.weight"] = torch.zeros(1)
        state["conv_in.weight"] = torch.zeros(32, 4, 1, 1)
        state["time_embedding.linear_1.weight"] = state["time_embedding.linear_1.weight"].T[:5].contiguous()
        state["conv_in.bias"] = torch.zeros(32, dtype=torch.int8)
        return without("conv_out.bias", "mid_block.attentions.0.proj_in.weight")(state)

    change(base / UNET, edit)
    refused(
        base,
        f"{base / 'unet'}: its tensors are not those of the model in its configuration",
        "2 missing:",
        "conv_out.bias [4]",
        "mid_block.attentions.0.proj_in.weight [64, 64]",
        "2 unexpected:",
        f"extra.weight [2, 3] in {base / UNET}",
        "down_blocks.1.resnets.7.conv1.weight [1]",
        "2 of the wrong shape:",
        f"conv_in.weight: [32, 4, 1, 1] in {base / UNET}, the model needs [32, 4, 3, 3]",
        "time_embedding.linear_1.weight: [5, 128]",
        "1 of a dtype that weights cannot have",
        "conv_in.bias: int8",
    )


def test_a_tensor_under_two_names(base: Path) -> None:
    at = "decoder.mid_block.attentions.0"
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    change(file, lambda state: state | {f"{at}.query.weight": state[f"{at}.to_q.weight"].clone()})
    refused(base, "1 duplicated:", f"{at}.query.weight", f"{at}.to_q.weight")
    file = base / "text_encoder" / "model.safetensors"
    change(base / "vae" / "diffusion_pytorch_model.safetensors", without(f"{at}.query.weight"))
    change(file, lambda state: state | {"text_model." + name: value.clone() for name, value in state.items()})
    refused(base, f"{len(load_file(file)) // 2} duplicated:")


def test_long_lists_are_cut(base: Path) -> None:
    change(base / UNET, lambda state: {f"lora.{name}": value for name, value in state.items()})
    message = refused(base, " missing:", " unexpected:", "more")
    assert message.count("\n") == 2 * (1 + SHOWN + 1)


def test_eight_bit_weights(base: Path) -> None:
    change(base / UNET, lambda state: {name: value.to(torch.float8_e4m3fn) for name, value in state.items()})
    refused(base, "of a dtype that weights cannot have", "float8_e4m3fn")


def test_wrong_configuration(base: Path) -> None:
    change(base / "unet" / "config.json", lambda config: config | {"block_out_channels": [32, 32]})
    refused(base, "of the wrong shape", "the model needs")
    change(base / "unet" / "config.json", lambda config: config | {"norm_num_groups": 7})
    refused(base, str(base / "unet" / "config.json"), "7")
    change(base / "unet" / "config.json", lambda config: config | {"norm_num_groups": 8, "act_fn": "tanh"})
    refused(base, str(base / "unet" / "config.json"), "act_fn")
    (base / "unet" / "config.json").write_text('{"_class_name": ')
    refused(base, str(base / "unet" / "config.json"), "is not valid JSON")
    (base / "unet" / "config.json").write_text("[]")
    refused(base, "must hold a JSON object")
    (base / "unet" / "config.json").unlink()
    refused(base, str(base / "unet" / "config.json"), "there is no such file")


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "FluxPipeline", "StableDiffusion3Pipeline", None])
def test_folders_of_other_models(kind: str | None, base: Path) -> None:
    change(base / "model_index.json", lambda index: index | {"_class_name": kind})
    assert "\n" not in refused(base, f"a checkpoint of {kind}, not of Stable Diffusion XL")


def test_mislabelled_parts(base: Path) -> None:
    index = json.loads((base / "model_index.json").read_text())
    others = {"vae": "AsymmetricAutoencoderKL", "unet": "FluxTransformer2DModel", "text_encoder_2": "T5EncoderModel"}
    for part, kind in others.items():
        change(base / "model_index.json", lambda _, part=part, kind=kind: index | {part: ["diffusers", kind]})
        refused(base, f"{part} is a {kind}")
    change(base / "model_index.json", lambda _: index | {"unet": [None, None]})
    refused(base, "has no unet")
    change(base / "model_index.json", lambda _: index)
    change(base / "unet" / "config.json", lambda config: config | {"addition_embed_type": None})
    refused(base, "addition_embed_type")


def test_missing_parts(base: Path) -> None:
    for part in ("scheduler", "tokenizer", "text_encoder", "vae"):
        (base / part).rename(base / "elsewhere")
        assert "\n" not in refused(base, str(base / part))
        (base / "elsewhere").rename(base / part)
    open_source(base)
    (base / "tokenizer_2" / "tokenizer.json").write_text("{")
    refused(base, "tokenizer.json: is damaged")


def test_folders_that_are_no_checkpoint(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    refused(folder, "is empty")
    (folder / "notes.txt").write_text("x")
    refused(folder, "neither distrijax.json nor model_index.json", "notes.txt")
    (folder / "model.ckpt").write_bytes(pickle.dumps(1))
    refused(folder, "model.ckpt is a pickle", "never read")
    (folder / "model.safetensors").write_bytes(b"")
    refused(folder, f"give the file itself: {folder / 'model.safetensors'}")
    refused(base / "unet", "looks like a single model (UNet2DConditionModel)")
    for name in ("model.ckpt", "pytorch_model.bin", "model.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(1))
        refused(tmp_path / name, "it is a pickle", "never read", "safetensors")
    (tmp_path / "model.gguf").write_bytes(b"")
    refused(tmp_path / "model.gguf", "is not a .safetensors file")


def test_weights_that_are_pickles(base: Path) -> None:
    (base / UNET).unlink()
    refused(base, "nor any other weights")
    torch.save({"a": torch.zeros(1)}, base / "unet" / "diffusion_pytorch_model.bin")
    refused(base, "only diffusion_pytorch_model.bin: pickles can run code and are never read")


def test_absent_variants(base: Path, pristine: Path, tmp_path: Path) -> None:
    refused(base, "no diffusion_pytorch_model.fp16.safetensors", "ask for no variant", variant="fp16")
    (base / UNET).rename(base / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    refused(base, "present: diffusion_pytorch_model.fp16.safetensors; ask for variant='fp16'")
    refused(base, "ask for variant='fp16'", variant="bf16")
    open_source(base, variant="fp16")
    converted = convert(pristine, tmp_path / "converted", progress=False)
    refused(converted, "has no variant 'fp16'", variant="fp16")
    refused(converted, "config is for single files", config=base)


@pytest.fixture
def split(base: Path) -> Path:
    """The U-Net in two parts."""
    state = load_file(base / UNET)
    (base / UNET).unlink()
    names, weight_map = sorted(state), {}
    for number in (1, 2):
        part = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        mine = names[: len(names) // 2] if number == 1 else names[len(names) // 2 :]
        save_file({name: state[name] for name in mine}, base / "unet" / part, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, part)
    (base / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    open_source(base)
    return base


def test_broken_splits(split: Path, pristine: Path) -> None:
    parts = sorted((split / "unet").glob("*-of-*"))
    index = json.loads((split / INDEX).read_text())["weight_map"]

    def set_index(weight_map: Any) -> None:
        (split / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    parts[1].rename(split / "elsewhere")
    refused(split, "1 of 2 parts are missing: diffusion_pytorch_model-00002-of-00002.safetensors")
    (split / "elsewhere").rename(parts[1])
    set_index(without("conv_in.bias")(index))
    refused(split, str(parts[0]), "holds tensor 'conv_in.bias', but", "places it in None")
    set_index(index | {"conv_in.bias": parts[1].name})
    refused(split, "holds tensor 'conv_in.bias', but", f"places it in {parts[1].name}")
    set_index(index | {"more": parts[0].name})
    refused(split, str(parts[0]), "lacks tensor 'more'")
    for outside in ("../../secret.safetensors", "/etc/passwd", "part.bin"):
        set_index(index | {"conv_in.bias": outside})
        refused(split, f"names {outside!r}, which is not a safetensors file beside it")
    for nonsense in (None, 3, {"conv_in.bias": 3}):
        set_index(nonsense)
        refused(split, "has no weight_map")


def test_damaged_converted_checkpoints(pristine: Path, tmp_path: Path) -> None:
    good = convert(pristine, tmp_path / "good", progress=False)
    manifest = json.loads((good / "distrijax.json").read_text())

    def copy() -> Path:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        return shutil.copytree(good, tmp_path / "bad")

    def write(**values: Any) -> Path:
        changed = {name: value for name, value in manifest.items() if name != "checksum"} | values
        (bad := copy()).joinpath("distrijax.json").write_text(json.dumps(changed))
        return bad

    largest = max((good / "unet").rglob("*"), key=lambda path: path.stat().st_size).relative_to(good)
    (copy() / largest).unlink()
    refused(tmp_path / "bad", "1 files are missing or of the wrong size", str(largest))
    with open(copy() / largest, "r+b") as file:
        file.truncate(100)
    refused(tmp_path / "bad", "1 files are missing or of the wrong size", str(largest))
    refused(write(format=2), "is of format 2, this version reads 1")
    refused(write(components=3), "is damaged")
    refused(write(files=None), "is damaged")
    components = json.loads(json.dumps(manifest["components"]))
    del components["vae"]["parameters"]["quant_conv.bias"]
    refused(write(components=components), "the parameters of vae are not those of its configuration")
    refused(write(components=without("vae")(manifest["components"])), "is damaged (it has no vae)")
    (copy() / "distrijax.json").write_text("{")
    refused(tmp_path / "bad", "is not valid JSON")
    for name in [path for path in manifest["files"] if path.startswith("unet/") and "/d/" in path]:
        path = tmp_path / "bad" / name
        path.write_bytes(bytes(path.stat().st_size))
    (tmp_path / "bad" / "distrijax.json").write_text(json.dumps(manifest))
    # In a process of its own: the reads that are under way when one fails report to orbax's closed event loop.
    command = [sys.executable, "-m", "distrijax", "convert", tmp_path / "bad", tmp_path / "out", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert any("error: " in line and "unet: is damaged" in line for line in result.stderr.splitlines()), result.stderr
    assert not (tmp_path / "out").exists()


def test_sources_that_are_nowhere(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "there is no such file or folder")
    refused("nowhere", "there is no such file or folder", "owner/name")
    refused("folder/model.safetensors", "there is no such file or folder")
    message = refused("owner/not-cached", "could not be fetched from the hub", "give a folder's path")
    assert "\n" not in message


def test_hub_ids(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is needed is fetched; the hub's own refusals say what to do."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked: list[Any] = []

    def snapshot(repo: str, allow_patterns: list[str]) -> str:
        asked.append((repo, allow_patterns))
        return str(pristine)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    load("owner/model", progress=False)
    assert asked[0][0] == "owner/model"
    files = [str(path.relative_to(pristine)) for path in pristine.rglob("*") if path.is_file()]
    assert set(filter_repo_objects(files, allow_patterns=asked[0][1])) == set(files)
    others = ["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "unet/model.onnx"]
    others += ["sd_xl_base_1.0.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors", "01.png"]
    others += ["unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "text_encoder/flax_model.msgpack"]
    assert list(filter_repo_objects(others, allow_patterns=pipeline_patterns(None))) == []
    half = set(filter_repo_objects([*files, *others], allow_patterns=pipeline_patterns("fp16")))
    assert half == {name for name in files if not name.endswith("safetensors")} | {others[0], others[6]}
    split = ["diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-00001-of-00002.safetensors"]
    assert list(filter_repo_objects(split, allow_patterns=component_patterns("unet", None))) == split


def test_missing_rules_would_be_noticed() -> None:
    """Each table is one to one, in names and axes: what a rule brings over, its inverse brings back."""
    for table in (unet_table(), unet_table(False), vae_table()):
        for pattern, template, _ in table._to_ours:
            name = pattern.pattern.replace(r"(0|[1-9]\d*)", "3").replace("\\", "")
            entry = table.to_ours(name)
            assert entry is not None
            assert entry.name == template.replace("*", "3")
            back = table.to_torch(entry.name)
            assert back is not None
            assert back.name == name
            assert [entry.axes[axis] for axis in back.axes] == list(range(len(entry.axes)))


def test_safetensors_written_are_those_of_the_library(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    import ml_dtypes
    from safetensors import safe_open

    arrays = {
        "a": random.standard_normal((3, 5)).astype(np.float32),
        "scalar": np.array(2.5, np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "brain": random.standard_normal((4, 2, 1)).astype(ml_dtypes.bfloat16),
        "double": random.standard_normal(7),
    }
    layout = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    write_safetensors(tmp_path / "file.safetensors", layout, reversed(arrays.items()))
    with safe_open(tmp_path / "file.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            assert np.array_equal(file.get_tensor(name).double().numpy(), array.astype(np.float64))
    for name, tensor in read_safetensors(tmp_path / "file.safetensors").items():
        assert (tensor.shape, tensor.dtype) == layout[name]
        assert tensor.load().tobytes() == arrays[name].tobytes()

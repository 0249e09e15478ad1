"""Reading adapters: files, folders and state dicts of every family of names and every kind."""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from distrijax.adapters.kinds import KINDS, Arrays, Delta, Kind, MisfitError, Scaling, norms
from distrijax.adapters.names import Dictionary, Layer, Layers, layers_of
from distrijax.adapters.others import BUNDLED, other_kind, other_model
from distrijax.checkpoint.component import Component
from distrijax.checkpoint.files import PICKLES, read_json
from distrijax.checkpoint.hub import locate
from distrijax.checkpoint.tables import listed
from distrijax.checkpoint.tensors import read_metadata, read_safetensors
from distrijax.checks import path_of
from distrijax.config import UNetConfig
from distrijax.demo import ADAPTERS
from distrijax.errors import DistrijaxError

logger = logging.getLogger(__name__)

Source: TypeAlias = "str | Path | Mapping[str, Any]"
FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""The files of diffusers and of PEFT, which are looked for in a folder first."""
CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"
"""The entry of a file's header in which diffusers stores what PEFT stores in `adapter_config.json`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory.

    Attributes:
        source: where it is from, for messages.
        digest: SHA-256 of the file, or of the tensors of a state dict, as hexadecimal digits.
        deltas: the change of each parameter, by component and path.
        configs: the configurations of those components, which other models do not share.
    """

    source: str
    digest: str
    deltas: Mapping[str, Mapping[str, Delta]]
    configs: Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Content:
    """What a source holds.

    Attributes:
        tensors: by name, as they are stored.
        header: free-form entries of the file's header.
        config: PEFT's configuration, with keys such as `unet.lora_alpha`, or without the component.
    """

    source: str
    digest: str
    tensors: Arrays
    header: Mapping[str, str]
    config: Mapping[str, Any]


def read_adapter(content: Content, components: Mapping[str, Component]) -> Adapter:
    """Find the layer of every tensor, and make changes of weights of them.

    Args:
        components: the networks of the pipeline, by name.

    Raises:
        DistrijaxError: it is no adapter of this pipeline; all tensors that do not fit are listed.
    """
    unet = components["unet"].config
    assert isinstance(unet, UNetConfig)
    networks = {name: layers_of(component) for name, component in components.items() if name != "vae"}
    found, faults = _by_layer(content, Dictionary(networks, unet))
    deltas: dict[str, dict[str, Delta]] = {}
    for candidates, tensors in found:
        attempts = [_deltas(content, layer, networks[layer.component], tensors) for layer in candidates]
        layer, changes, wrong = next((a for a in attempts if not any(a[2].values())), attempts[0])
        for path, delta in changes.items():
            deltas.setdefault(layer.component, {})[path] = delta
        for title, names in wrong.items():
            faults[title] += names
    if any(faults.values()) or not found:
        other = other_model(content.header, content.tensors, unet.cross_attention_dim)
        what = f"is made for {other}, not for this model" if other else "does not fit this model"
        raise DistrijaxError(f"{content.source}: {what}" + (listed(faults) or "; it has no tensors"))
    return Adapter(content.source, content.digest, deltas, {name: components[name].config for name in deltas})


def open_adapter(source: Source, weight_name: str | None = None, subfolder: str | None = None) -> Content:
    """Read a source.

    Args:
        source: a `.safetensors` file, a folder, a hub id, `demo:NAME`, or a dictionary of tensors.
        weight_name: name of the file in a folder or on the hub.
        subfolder: folder in it.
    """
    for argument, value in {"weight_name": weight_name, "subfolder": subfolder}.items():
        if value is not None and not isinstance(value, str):
            raise DistrijaxError(f"{argument} is {value!r}; it must be a string")
    if isinstance(source, Mapping):
        return _from_tensors(source)
    path = find_adapter(source, weight_name, subfolder)
    stored = read_safetensors(path)
    if strange := [name for name, tensor in stored.items() if tensor.dtype == np.void]:
        raise DistrijaxError(f"{path}: the dtype of {strange[0]} and {len(strange) - 1} more is unknown")
    tensors = {name: tensor.load() for name, tensor in stored.items()}
    header = read_metadata(path)
    config = path.parent / CONFIG
    values = read_json(config) if config.is_file() else {}
    if METADATA in header:
        try:
            values = json.loads(header[METADATA])
            assert isinstance(values, dict)
        except (ValueError, AssertionError):
            raise DistrijaxError(f"{path}: the entry {METADATA} of its header is not a JSON object") from None
    return Content(str(source), digest_of(path), tensors, header, values)


def digest_of(path: Path) -> str:
    """Return the SHA-256 digest of a file as hexadecimal digits."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DistrijaxError(f"{path}: cannot be read: {error.strerror or error}") from error


def find_adapter(source: str | Path, weight_name: str | None = None, subfolder: str | None = None) -> Path:
    """Return the file of a source, which is downloaded if it is on the hub; arguments as in `open_adapter`."""
    if isinstance(source, str) and source.startswith("demo:"):
        names = sorted(path.stem for path in ADAPTERS.glob("*.safetensors"))
        if (name := source.removeprefix("demo:")) not in names:
            raise DistrijaxError(f"{source}: there is no such adapter of the demo model; there are {', '.join(names)}")
        return ADAPTERS / f"{name}.safetensors"
    path = path_of("source", source)
    for file in (weight_name or "", path.name):
        if Path(file).suffix in PICKLES:
            raise DistrijaxError(f"{file}: is a pickle, which can run code and is never read; look for a .safetensors")
    if path.is_file():
        if weight_name is not None or subfolder is not None:
            raise DistrijaxError(f"{path}: is a file; weight_name and subfolder are for folders")
        return path
    inside = f"{subfolder}/" if subfolder else ""
    patterns = [f"{inside}{name}" for name in (weight_name or "*.safetensors", CONFIG)]
    folder = locate(source, patterns) / (subfolder or "")
    if weight_name is not None:
        if not (folder / weight_name).is_file():
            raise DistrijaxError(f"{folder}: holds no {weight_name}; {_held(folder)}")
        return folder / weight_name
    present = sorted(folder.glob("*.safetensors"))
    chosen = [path for path in present if path.name in FILES] or present
    if len(chosen) != 1:
        raise DistrijaxError(f"{folder}: say which file to read with weight_name; {_held(folder)}")
    return chosen[0]


def _held(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    return f"it holds {', '.join(names)}" if names else "it holds no .safetensors file"


def _from_tensors(state: Mapping[str, Any]) -> Content:
    """Take a dictionary of arrays of NumPy or JAX, or tensors of torch."""
    tensors, digest = {}, hashlib.sha256()
    for name, value in sorted(state.items(), key=lambda item: str(item[0])):
        if hasattr(value, "detach"):  # a torch tensor, perhaps in bfloat16, which NumPy does not know
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value
        try:
            tensors[name] = np.asarray(value)
        except Exception:  # whatever the conversion of a strange object raises
            tensors[name] = np.empty((), object)
        if not isinstance(name, str) or tensors[name].dtype.kind in "OUSMm":
            raise DistrijaxError(f"source has {name!r}: {type(value).__name__}; a dictionary must hold tensors by name")
        digest.update(f"{name} {tensors[name].dtype.name} {tensors[name].shape}".encode() + tensors[name].tobytes())
    return Content("the state dict", digest.hexdigest(), tensors, {}, {})


_Found: TypeAlias = list[tuple[list[Layer], dict[str, str]]]
UNKNOWN, SHAPE, MISSING = "unknown", "of the wrong shape", "missing"
NUMBERS, DTYPE, TWICE = "with NaN or infinity", "of a dtype that has no numbers", "duplicated"


def _by_layer(content: Content, dictionary: Dictionary) -> tuple[_Found, dict[str, list[str]]]:
    """Return the tensors of each layer, tensor -> its name in the file, and what is wrong with some of them."""
    faults: dict[str, list[str]] = {title: [] for title in (UNKNOWN, TWICE, MISSING, SHAPE, DTYPE, NUMBERS)}
    names = [(name, dictionary.find(name)) for name in content.tensors]
    unknown = [name for name, place in names if place is None]
    if bundled := sorted({match[1] for name in unknown if (match := BUNDLED.match(name))}):
        logger.warning("%s: ignored the embeddings of the words %s in it", content.source, ", ".join(bundled))
        unknown = [name for name in unknown if not BUNDLED.match(name)]
    if other := other_kind(unknown):
        raise DistrijaxError(f"{content.source}: is not a LoRA for this model but {other}")
    faults[UNKNOWN] = [_described(content, name) for name in unknown]
    # As in diffusers, original names are ignored where a file has both; they would count twice.
    styles = {layers[0].style for _, place in names if place for layers in place[:1]}
    skipped = "original" if {"original", "diffusers"} <= styles else None
    if skipped:
        logger.warning("%s: has names of both kinds; ignored those like input_blocks_4_1_…", content.source)
    found: dict[tuple[Layer, ...], dict[str, str]] = {}
    for name, place in names:
        if place is None or place[0][0].style == skipped:
            continue
        layers, what = place
        tensors = found.setdefault(tuple(layer._replace(style="") for layer in layers), {})
        if what in tensors:
            faults[TWICE].append(f"{name} and {tensors[what]}")
            continue
        tensors[what] = name
        array = content.tensors[name]
        if array.dtype.kind not in "fiu" and array.dtype not in _SMALL:
            faults[DTYPE].append(f"{name}: {array.dtype.name}")
        elif not np.isfinite(array.astype(np.float32) if array.dtype in _SMALL else array).all():
            faults[NUMBERS].append(name)
    return [(list(layers), tensors) for layers, tensors in found.items()], faults


# NumPy knows little of these dtypes.
_SMALL = {np.dtype(kind) for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)}


def _described(content: Content, name: str) -> str:
    return f"{name} {list(content.tensors[name].shape)}"


def _deltas(
    content: Content, layer: Layer, layers: Layers, names: Mapping[str, str]
) -> tuple[Layer, dict[str, Delta], dict[str, list[str]]]:
    """Return the changes of a layer's parameters by path, and what is wrong with the layer's tensors."""
    tensors = {what: content.tensors[name] for what, name in names.items()}
    deltas, wrong, used = dict[str, Delta](), dict[str, list[str]](), {"alpha"}
    any_name, parameters = next(iter(names.values())), layers[layer.name]
    for leaf, kinds in KINDS.items():
        kind = _kind(kinds, tensors)
        if kind is None:
            continue
        used |= {*kind.needs, *kind.may} | ({"dora_scale", "magnitude"} if leaf == "weight" else set())
        if absent := [what for what in kind.needs if what not in tensors]:
            wrong.setdefault(MISSING, []).append(f"{' and '.join(absent)} beside {names[_first(kind, tensors)]}")
            continue
        if leaf not in parameters:
            wrong.setdefault(UNKNOWN, []).append(f"{names[kind.needs[0]]}: the layer has no {leaf}")
            continue
        path, shape = parameters[leaf]
        try:
            steps = kind.steps(_checked(tensors, kind), shape, _scaling(content, layer, tensors))
            deltas[path] = Delta(layer.name, tuple(steps), norms(tensors, shape) if leaf == "weight" else None)
        except MisfitError as misfit:
            name = names.get(misfit.tensor, f"{misfit.tensor} beside {any_name}")
            wrong.setdefault(SHAPE, []).append(f"{name}: {list(misfit.shape)}, this model needs {misfit.need}")
    if stray := [name for what, name in names.items() if what not in used or (not deltas and not wrong)]:
        wrong.setdefault(MISSING, []).append(f"tensors beside {', '.join(stray)}")
    return layer, deltas, wrong


def _kind(kinds: tuple[Kind, ...], tensors: Arrays) -> Kind | None:
    """Return the kind of which most is there."""
    complete = [kind for kind in kinds if all(what in tensors for what in kind.needs)]
    begun = [kind for kind in kinds if any(what in tensors for what in kind.needs)]
    return next(iter([*complete, *begun]), None)


def _first(kind: Kind, tensors: Arrays) -> str:
    return next(what for what in kind.needs if what in tensors)


def _checked(tensors: Arrays, kind: Kind) -> Arrays:
    for what in (*kind.needs, *kind.may):
        if what in tensors and (tensors[what].ndim == 0 or tensors[what].size == 0):
            raise MisfitError(what, tensors[what].shape, "numbers along every axis")
    return tensors


def _scaling(content: Content, layer: Layer, tensors: Arrays) -> Scaling:
    """Return alpha: the file's tensor, or what PEFT's configuration says of the layer."""
    config = content.config
    prefix = f"{layer.component}." if any(key.startswith(f"{layer.component}.") for key in config) else ""
    stabilised = config.get(f"{prefix}use_rslora") is True
    if "alpha" in tensors:
        if tensors["alpha"].size != 1:
            raise MisfitError("alpha", tensors["alpha"].shape, "one number")
        return Scaling(float(tensors["alpha"].reshape(())), stabilised)
    alpha, patterns = config.get(f"{prefix}lora_alpha"), config.get(f"{prefix}alpha_pattern") or {}
    for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
        if re.match(rf"(.*\.)?({pattern})$", layer.name):  # as PEFT compares them
            alpha = value
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float)):
        raise DistrijaxError(f"{content.source}: lora_alpha is {alpha!r} in its configuration; it must be a number")
    return Scaling(None if alpha is None else float(alpha), stabilised)

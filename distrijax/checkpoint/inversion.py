"""Files of textual inversions: vectors that stand for new tokens, from any program that writes safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distrijax.checkpoint.files import PICKLES
from distrijax.checkpoint.hub import locate
from distrijax.checkpoint.tensors import read_safetensors
from distrijax.checks import array_of
from distrijax.demo import TOKEN
from distrijax.errors import DistrijaxError

FORMATS: dict[frozenset[str], dict[str, str | None]] = {
    frozenset({"clip_l", "clip_g"}): {"clip_l": "text_encoder", "clip_g": "text_encoder_2"},
    frozenset({"clip_l"}): {"clip_l": "text_encoder"},
    frozenset({"clip_g"}): {"clip_g": "text_encoder_2"},
    frozenset({"text_encoders_0", "text_encoders_1"}): {
        "text_encoders_0": "text_encoder",
        "text_encoders_1": "text_encoder_2",
    },
    frozenset({"emb_params"}): {"emb_params": None},  # A1111 and kohya
    frozenset({"*"}): {"*": None},
}
"""Names of tensors, and whose each is; None means that of the text encoder that is as wide. A file with a single tensor
of another name is diffusers', and that name is the token's."""


class Vectors(NamedTuple):
    """The vectors of a file.

    Attributes:
        token: what the file, or its name, calls it; None if neither does.
        of: for "text_encoder", "text_encoder_2" or None (the one that is as wide), an array [N, D].
    """

    token: str | None
    of: dict[str | None, np.ndarray]

    def each(self) -> list["Vectors"]:
        """Return each vector by itself, without a name."""
        return [
            Vectors(None, {kind: vector[None] for kind, vector in zip(self.of, vectors, strict=True)})
            for vectors in zip(*self.of.values(), strict=True)
        ]


def read_inversion(source: Any, weight_name: str | None = None) -> Vectors:
    """Read textual inversion vectors.

    Args:
        source: a `.safetensors` file, a folder with one, a hub id, `demo` (the built-in one), a dictionary of arrays,
            or an array.
        weight_name: the file in a folder or repository.

    Raises:
        DistrijaxError: there is no such file, or it is of another kind.
    """
    if isinstance(source, str | Path):
        path = _file(source, weight_name)
        tensors = {name: tensor.load() for name, tensor in read_safetensors(path).items()}
        return _vectors(tensors, path.stem, str(path))
    if isinstance(source, Mapping):
        if not all(isinstance(name, str) for name in source):
            raise DistrijaxError(f"the textual inversion is {source!r}; its keys must be names of tensors")
        return _vectors(source, None, "the textual inversion")
    return Vectors(None, {None: _as_vectors("the textual inversion", source)})


def _vectors(tensors: Mapping[str, Any], stem: str | None, where: str) -> Vectors:
    names = frozenset(tensors)
    if "string_to_param" in names:
        raise DistrijaxError(f"{where}: is a dictionary of A1111; pass its string_to_param['*'], and its name as token")
    if names in FORMATS:
        return Vectors(
            stem, {kind: _as_vectors(f"{where}: {name}", tensors[name]) for name, kind in FORMATS[names].items()}
        )
    if len(names) == 1:
        ((token, value),) = tensors.items()
        return Vectors(token, {None: _as_vectors(f"{where}: {token}", value)})
    some = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
    raise DistrijaxError(
        f"{where}: is not a textual inversion; it must hold clip_l and clip_g, emb_params, or a single tensor, and not "
        f"{some or 'nothing'}"
    )


def _as_vectors(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value) if isinstance(value, np.ndarray) else array_of(name, value)
    vectors = array.astype(np.float32)
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise DistrijaxError(f"{name} has the shape {array.shape}; it must be finite numbers, [N, D] or [D]")
    return vectors


def _file(source: str | Path, weight_name: str | None) -> Path:
    if source == "demo":
        return TOKEN
    path = locate(source, [weight_name or "*.safetensors"], "textual inversion")
    if path.is_dir():
        found = [path / weight_name] if weight_name else sorted(path.glob("*.safetensors"))
        if len(found) != 1 or not found[0].is_file():
            names = ", ".join(file.name for file in found) or "none"
            raise DistrijaxError(f"{source}: needs one .safetensors file ({names}); name it with weight_name")
        path = found[0]
    if path.suffix in PICKLES:
        raise DistrijaxError(f"{path}: is a pickle, which can run any code when it is read; convert it to safetensors")
    return path

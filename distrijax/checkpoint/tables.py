"""The mapping between torch's tensors and our parameters: one table per model, used in both directions.

A rule names a layer in torch's state dict, the same layer in our module, and the kind of layer, which says how its
tensors are converted. `*` stands for a number. Names are those of current diffusers and transformers.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeAlias

from distrijax.checkpoint.tensors import DTYPES, Shape, Tensor, log_harmless
from distrijax.errors import DistrijaxError

SHOWN = 12  # faults of each kind that are listed; the rest are counted

# A kind of layer: torch's tensor name -> (our name, the axes of torch's tensor in our order).
Kind: TypeAlias = Mapping[str, tuple[str, Shape]]
LINEAR: Kind = {"weight": ("kernel", (1, 0)), "bias": ("bias", (0,))}  # [O, I] -> [I, O]
CONV: Kind = {"weight": ("kernel", (0, 2, 3, 1)), "bias": ("bias", (0,))}  # OIHW -> OHWI
NORM: Kind = {"weight": ("scale", (0,)), "bias": ("bias", (0,))}
EMBED: Kind = {"weight": ("embedding", (0, 1))}

Rule: TypeAlias = tuple[str, str, Kind]
_Patterns: TypeAlias = list[tuple[re.Pattern[str], str, Shape]]


class Entry(NamedTuple):
    """A tensor's name in the other format, and the permutation of its axes."""

    name: str
    axes: Shape


class Table:
    """Rules compiled for both directions.

    Args:
        rules: see the module's docstring.
        rename: returns the current name for an original or older one, and others unchanged.
        ignored: regular expression of tensors that no model needs.
        flatten: regular expression of linear weights that old files keep as 1x1 convolutions, [O, I, 1, 1].
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        *,
        rename: Callable[[str], str] = str,
        ignored: str | None = None,
        flatten: str | None = None,
    ):
        self._to_ours: _Patterns = []
        self._to_torch: _Patterns = []
        for theirs, ours, kind in rules:
            for leaf, (our_leaf, axes) in kind.items():
                name, path = f"{theirs}.{leaf}", f"{ours}.{our_leaf}"
                inverse = tuple(sorted(range(len(axes)), key=axes.__getitem__))
                self._to_ours.append((_pattern(name), path, axes))
                self._to_torch.append((_pattern(path), name, inverse))
        self._rename = rename
        self._ignored = re.compile(ignored) if ignored else None
        self._flatten = re.compile(flatten) if flatten else None

    def to_ours(self, name: str) -> Entry | None:
        """Return our path for torch's name, current or older, and the axes of torch's tensor in our order."""
        return _find(self._to_ours, self._rename(name))

    def to_torch(self, path: str) -> Entry:
        """Return torch's name for our path, and the axes of our array in torch's order."""
        entry = _find(self._to_torch, path)
        assert entry is not None, f"the table has no rule for {path}"
        return entry

    def ignores(self, name: str) -> bool:
        """Return whether no model needs torch's tensor of this name."""
        return bool(self._ignored and self._ignored.fullmatch(name))

    def flattened(self, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor in the current shape."""
        if self._flatten and self._flatten.fullmatch(self._rename(name)) and set(tensor.shape[2:]) == {1}:
            return tensor.reshape(tensor.shape[:2])
        return tensor


def convert(
    table: Table, tensors: Iterable[tuple[str, Tensor]], expected: Mapping[str, Shape], what: str
) -> dict[str, Tensor]:
    """Return our parameters, path -> tensor in our layout, from a torch state dict's items, reading nothing.

    One error lists what is missing, unexpected, duplicated, of another shape than in `expected`, or no weight.
    """
    matches: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    harmless, unexpected, twice, shapes, dtypes = [], [], [], [], []
    for name, tensor in tensors:
        entry = table.to_ours(name)
        if entry is None or entry.name not in expected:
            if table.ignores(name):
                harmless.append(name)
                continue
            unexpected.append(f"{name} {list(tensor.shape)}{_in(tensor)}")
            continue
        path, tensor = entry.name, table.flattened(name, tensor)
        if path in matches:
            twice.append(f"{name}{_in(tensor)} and {origin[path]}{_in(matches[path])}")
            continue
        torch_name, axes = table.to_torch(path)
        need = tuple(expected[path][axis] for axis in axes)
        if tensor.shape != need:
            shapes.append(f"{torch_name}: {list(tensor.shape)}{_in(tensor)}, the model needs {list(need)}")
        elif tensor.dtype not in DTYPES.values():
            dtypes.append(f"{torch_name}: {tensor.dtype.name}{_in(tensor)}")
        else:
            tensor = tensor.transpose(entry.axes)
        matches[path], origin[path] = tensor, name
    missing = []
    for path in expected:
        if path not in matches:
            back = table.to_torch(path)
            missing.append(f"{back.name} {[expected[path][axis] for axis in back.axes]}")
    faults = {
        "missing": missing,
        "unexpected": unexpected,
        "duplicated": twice,
        "of the wrong shape": shapes,
        "of a dtype that weights cannot have; use the model's file in float32, float16 or bfloat16": dtypes,
    }
    if any(faults.values()):
        raise DistrijaxError(f"{what}: its tensors are not those of the model in its configuration" + listed(faults))
    log_harmless(what, harmless)
    return {path: matches[path] for path in expected}


def listed(faults: Mapping[str, list[str]]) -> str:
    """Return faults by kind for the end of a message, and a count of those that would make it too long."""
    lines = []
    for title, names in faults.items():
        if names:
            lines.append(f"\n  {len(names)} {title}:")
            lines += [f"\n    {name}" for name in sorted(names)[:SHOWN]]
            lines += [f"\n    and {len(names) - SHOWN} more"] * (len(names) > SHOWN)
    return "".join(lines)


def _in(tensor: Tensor) -> str:
    return f" in {tensor.file}" if tensor.file else ""


def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(re.escape(glob).replace(r"\*", r"(0|[1-9]\d*)"))


def _find(rules: _Patterns, name: str) -> Entry | None:
    for pattern, template, axes in rules:
        if match := pattern.fullmatch(name):
            for number in match.groups():
                template = template.replace("*", number, 1)
            return Entry(template, axes)
    return None


def _same(names: str, kind: Kind) -> list[Rule]:
    return [(name, name, kind) for name in names.split()]


def _under(prefix: str, rules: Iterable[Rule]) -> list[Rule]:
    return [(f"{prefix}.{theirs}", f"{prefix}.{ours}", kind) for theirs, ours, kind in rules]


def unet_table(use_linear_projection: bool = True, rename: Callable[[str], str] = str) -> Table:
    """Return the table of UNet2DConditionModel, in which `proj_in` and `proj_out` may be 1x1 convolutions."""
    attention = [*_same("to_q to_k to_v", LINEAR), ("to_out.0", "to_out", LINEAR)]
    transformer = [
        *_same("norm1 norm2 norm3", NORM),
        *_under("attn1", attention),
        *_under("attn2", attention),
        ("ff.net.0.proj", "ff.proj_in", LINEAR),
        ("ff.net.2", "ff.proj_out", LINEAR),
    ]
    block = [
        *_under("resnets.*", [*_same("norm1 norm2", NORM), *_same("conv1 conv2 conv_shortcut", CONV)]),
        ("resnets.*.time_emb_proj", "resnets.*.time_emb_proj", LINEAR),
        ("attentions.*.norm", "attentions.*.norm", NORM),
        *_under("attentions.*", _same("proj_in proj_out", LINEAR if use_linear_projection else CONV)),
        *_under("attentions.*.transformer_blocks.*", transformer),
    ]
    return Table(
        [
            *_same("conv_in conv_out", CONV),
            *_same("conv_norm_out", NORM),
            *_under("time_embedding", _same("linear_1 linear_2 cond_proj", LINEAR)),
            *_under("add_embedding", _same("linear_1 linear_2", LINEAR)),
            *_under("down_blocks.*", [*block, *_same("downsamplers.*.conv", CONV)]),
            *_under("mid_block", block),
            *_under("up_blocks.*", [*block, *_same("upsamplers.*.conv", CONV)]),
        ],
        rename=rename,
    )


def vae_table(rename: Callable[[str], str] = str) -> Table:
    """Return the table of AutoencoderKL."""
    resnets = _under("resnets.*", [*_same("norm1 norm2", NORM), *_same("conv1 conv2 conv_shortcut", CONV)])
    attention = [
        ("attentions.*.group_norm", "attentions.*.group_norm", NORM),
        *_under("attentions.*", _same("to_q to_k to_v", LINEAR)),
        ("attentions.*.to_out.0", "attentions.*.to_out", LINEAR),
    ]
    both = [
        *_same("conv_in conv_out", CONV),
        *_same("conv_norm_out", NORM),
        *_under("mid_block", [*resnets, *attention]),
    ]
    return Table(
        [
            *_under("encoder", [*both, *_under("down_blocks.*", [*resnets, *_same("downsamplers.*.conv", CONV)])]),
            *_under("decoder", [*both, *_under("up_blocks.*", [*resnets, *_same("upsamplers.*.conv", CONV)])]),
            *_same("quant_conv post_quant_conv", CONV),
        ],
        rename=rename,
        ignored=r"(loss|model_ema)\..*",
        flatten=r".*\.attentions\.0\.(to_q|to_k|to_v|to_out\.0)\.weight",
    )


def tiny_vae_table(rename: Callable[[str], str] = str) -> Table:
    """Return the table of AutoencoderTiny, whose layers are numbered, and so are those of its blocks."""
    layers = [*_same("layers.*", CONV), *_same("layers.*.conv.*", CONV)]
    return Table([*_under("encoder", layers), *_under("decoder", layers)], rename=rename)


def text_encoder_table(prefix: str = "text_model.") -> Table:
    """Return the table of CLIPTextModel and CLIPTextModelWithProjection.

    Args:
        prefix: prefix of exported names. Files are read with or (CLIPTextModel of transformers 5) without it.
    """
    layer = [
        *_same("layer_norm1 layer_norm2", NORM),
        *_under("self_attn", _same("q_proj k_proj v_proj out_proj", LINEAR)),
        *_under("mlp", _same("fc1 fc2", LINEAR)),
    ]
    model = [
        *_same("embeddings.token_embedding embeddings.position_embedding", EMBED),
        *_under("encoder.layers.*", layer),
        *_same("final_layer_norm", NORM),
    ]
    return Table(
        [*((prefix + theirs, ours, kind) for theirs, ours, kind in model), *_same("text_projection", LINEAR)],
        rename=lambda name: re.sub(r"^(?:text_model\.)?(?=embeddings\.|encoder\.|final_layer_norm\.)", prefix, name),
        # Constants, and the heads of a whole CLIP. Where the model has a projection, its rule comes first.
        ignored=r"(text_model\.)?(embeddings\.position_ids|logit_scale|attn_mask|text_projection(\.weight)?)"
        r"|(vision_model|visual|visual_projection)\..*",
    )

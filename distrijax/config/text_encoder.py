"""Configuration of a CLIP text encoder, read from the `config.json` that transformers writes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from distrijax.config import entry
from distrijax.config.entry import Json, Rule

WITH_PROJECTION = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}
"""transformers' class -> whether it projects the pooled state."""

# Written by transformers into every model's config.json. They act in training, or belong to generation, to task heads
# or to the way torch stores the weights.
_WITHOUT_EFFECT = """
    architectures attention_dropout attn_implementation chunk_size_feed_forward diversity_penalty dropout dtype
    encoder_no_repeat_ngram_size id2label initializer_factor initializer_range label2id length_penalty
    logit_scale_init_value max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    repetition_penalty return_dict temperature tie_word_embeddings top_k top_p torch_dtype transformers_version
    transformers.js_config typical_p use_cache
"""

ENTRIES: dict[str, Rule] = dict.fromkeys(_WITHOUT_EFFECT.split(), entry.anything) | {
    "bos_token_id": entry.optional(entry.whole(-1, 1 << 24)),
    "eos_token_id": entry.whole(0, 1 << 24),
    "hidden_act": entry.choice("quick_gelu", "gelu"),
    "hidden_size": entry.whole(),
    "intermediate_size": entry.whole(1, 1 << 18),
    "layer_norm_eps": entry.number(1e-12, 1),
    "max_position_embeddings": entry.whole(),
    "model_type": entry.choice("clip_text_model", "clip"),
    "num_attention_heads": entry.whole(1, 1024),
    "num_hidden_layers": entry.whole(1, 128),
    "pad_token_id": entry.optional(entry.whole(-1, 1 << 24)),
    "projection_dim": entry.optional(entry.whole()),
    "pruned_heads": entry.choice({}, None),
    "quantization_config": entry.choice(None),
    "vocab_size": entry.whole(1, 1 << 24),
}


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of a CLIP text encoder; field names and defaults are those of transformers' `CLIPTextConfig`.

    Attributes:
        with_projection: whether the pooled state is projected (`CLIPTextModelWithProjection`) or not (`CLIPTextModel`).
        eos_token_id: the pooled state is that of the first token with this id; 2, in old files, means the highest id.
        bos_token_id, pad_token_id: unused by the model; kept so that an exported config matches the original.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    pad_token_id: int | None = 1
    with_projection: bool = False

    def __post_init__(self) -> None:
        values = {name: value for name, value in vars(self).items() if name in ENTRIES}
        entry.read("text encoder", values, ENTRIES)
        heads = self.num_attention_heads
        entry.refuse("text encoder", entry.indivisible("num_attention_heads", [self.hidden_size], "hidden_size", heads))

    @classmethod
    def from_json(cls, json: Json, *, with_projection: bool | None = None) -> Self:
        """Build the configuration from a `config.json` of any transformers version; absent keys take its defaults.

        Args:
            json: the contents of the file; for a whole CLIP model, its `text_config` is used.
            with_projection: overrides the file's `architectures`; required if the file names none.

        Raises:
            DistrijaxError: an entry is not supported; the message lists them all.
        """
        entry.check("text encoder", json, {})  # is it a JSON object?
        classes = json.get("architectures")
        if isinstance(json.get("text_config"), Mapping):
            json = json["text_config"]
            classes = json.get("architectures") or classes
        if with_projection is None:
            names = classes if isinstance(classes, list | tuple) else [classes]
            with_projection = WITH_PROJECTION.get(str(names[0])) if len(names) == 1 else None
            if with_projection is None:
                allowed = f"{' or '.join(WITH_PROJECTION)}; the latter has a projection"
                entry.refuse("text encoder", [f"architectures={classes!r} (supported: {allowed})"])
        projects = {"projection_dim": entry.whole()} if with_projection else {}  # null is for the other class
        values = entry.read("text encoder", json, ENTRIES | projects)
        values = {name: value for name, value in values.items() if name != "projection_dim" or value is not None}
        given = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        return cls(**given, with_projection=bool(with_projection))

    def to_json(self) -> dict[str, Any]:
        """Return a `config.json` that transformers loads and `from_json` reads back."""
        values = dataclasses.asdict(self)
        del values["with_projection"]
        return {"architectures": [self.class_name], "model_type": "clip_text_model"} | values

    @property
    def class_name(self) -> str:
        """The name of this model's class in transformers."""
        return next(name for name, projects in WITH_PROJECTION.items() if projects == self.with_projection)

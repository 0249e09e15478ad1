"""Configuration of a CLIP text encoder, read from the `config.json` that transformers writes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from distrijax.checks import finite_number, one_of, whole_number
from distrijax.config.checks import Json, attribute_problems, refuse
from distrijax.errors import DistrijaxError

ACTIVATIONS = ("quick_gelu", "gelu")

WITH_PROJECTION = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}
"""transformers' class -> whether it projects the pooled state."""

# Written by transformers into every model's config.json; none of them changes what a text encoder computes.
# `dropout`, `attention_dropout` and the initializers act in training only; the others belong to generation, to task
# heads or to the way torch stores the weights.
_IGNORED = frozenset({
    "attention_dropout", "attn_implementation",
    "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "dropout", "dtype", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label",
    "initializer_factor", "initializer_range", "is_decoder", "label2id", "length_penalty", "logit_scale_init_value",
    "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "prefix", "problem_type", "remove_invalid_values",
    "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version",
    "transformers.js_config", "typical_p", "use_bfloat16", "use_cache",
})  # fmt: skip

# Attributes that could change the computation: accepted only with these values.
_FIXED: dict[str, tuple] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False, None),
    "model_type": ("clip_text_model", "clip"),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
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
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "max_position_embeddings")
        for name in (*sizes, "num_hidden_layers", "num_attention_heads"):
            whole_number(f"text encoder: {name}", getattr(self, name), least=1)
        whole_number("text encoder: eos_token_id", self.eos_token_id)
        for name in ("bos_token_id", "pad_token_id"):
            if getattr(self, name) is not None:
                whole_number(f"text encoder: {name}", getattr(self, name), least=-1)
        one_of("text encoder: hidden_act", self.hidden_act, ACTIVATIONS)
        if finite_number("text encoder: layer_norm_eps", self.layer_norm_eps) <= 0:
            raise DistrijaxError(f"text encoder: layer_norm_eps is {self.layer_norm_eps!r}; it must be above zero")
        if self.hidden_size % self.num_attention_heads:
            raise DistrijaxError(
                f"text encoder: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )

    @classmethod
    def from_json(cls, json: Json, *, with_projection: bool | None = None) -> Self:
        """Build the configuration from a `config.json` of any transformers version; absent keys take its defaults.

        Args:
            json: the contents of the file; for a whole CLIP model, its `text_config` is used.
            with_projection: overrides the file's `architectures`; required if the file names none.

        Raises:
            DistrijaxError: an attribute or value is not supported; the message lists them all.
        """
        if not isinstance(json, Mapping):
            raise DistrijaxError(f"text encoder: the configuration must be a JSON object, not {type(json).__name__}")
        architectures = json.get("architectures")
        if isinstance(json.get("text_config"), Mapping) and json.get("model_type", "clip") == "clip":
            json = json["text_config"]
            architectures = json.get("architectures") or architectures
        names = {field.name for field in dataclasses.fields(cls)} - {"with_projection"}
        problems = attribute_problems(json, _FIXED, {*names, *_IGNORED, "architectures"})
        if with_projection is None:
            classes = architectures if isinstance(architectures, list | tuple) else [None]
            if len(classes) != 1 or classes[0] not in WITH_PROJECTION:
                allowed = " or ".join(WITH_PROJECTION)
                problems.append(f"architectures={architectures!r} (supported: {allowed}; the latter has a projection)")
            else:
                with_projection = WITH_PROJECTION[classes[0]]
        values = {name: json[name] for name in names if name in json}
        if values.get("projection_dim", 0) is None:
            if with_projection:
                problems.append("projection_dim=None (a model with a projection has one)")
            del values["projection_dim"]
        refuse("text encoder", problems)
        return cls(**values, with_projection=bool(with_projection))

    def to_json(self) -> dict[str, Any]:
        """Return a `config.json` that transformers loads and `from_json` reads back."""
        values = dataclasses.asdict(self)
        del values["with_projection"]
        return {"architectures": [self.class_name], "model_type": "clip_text_model"} | values

    @property
    def class_name(self) -> str:
        """The name of this model's class in transformers."""
        return next(name for name, projects in WITH_PROJECTION.items() if projects == self.with_projection)

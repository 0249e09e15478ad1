"""Configuration of a CLIP text encoder, read from the `config.json` that transformers writes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from distrijax.errors import DistrijaxError

ACTIVATIONS = ("quick_gelu", "gelu")

# Written by transformers into every model's config.json; none of them changes what a text encoder computes.
# `dropout`, `attention_dropout` and the initializers act in training only, the rest belongs to generation, to task
# heads or to the way torch holds the weights.
IGNORED = frozenset({
    "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "attention_dropout", "attn_implementation",
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

# Attributes that would change the computation: accepted only when they say "not used".
REQUIRED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}

WITH_PROJECTION = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of a CLIP text encoder; field names and defaults are those of transformers' `CLIPTextConfig`.

    with_projection: whether the pooled state is projected (`CLIPTextModelWithProjection`) or not (`CLIPTextModel`).
    eos_token_id: 2 means the convention of old files: the pooled state sits at the highest id of the sequence. Any
        other value: at the first position that holds it.
    bos_token_id, pad_token_id: not read by the model, kept so that an exported config says what the original said.
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
            _check_int(name, getattr(self, name), least=1)
        _check_int("eos_token_id", self.eos_token_id, least=0)
        for name in ("bos_token_id", "pad_token_id"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), least=-1)
        if self.hidden_act not in ACTIVATIONS:
            raise DistrijaxError(
                f"text encoder: hidden_act {self.hidden_act!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
            )
        eps = self.layer_norm_eps
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not eps > 0:
            raise DistrijaxError(f"text encoder: layer_norm_eps is {eps!r}; it must be a number above zero")
        if self.hidden_size % self.num_attention_heads:
            raise DistrijaxError(
                f"text encoder: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, with_projection: bool | None = None) -> "TextEncoderConfig":
        """Read the contents of a `config.json`, of any transformers version; absent keys take transformers' defaults.

        with_projection: overrides the file's `architectures`, for instance with what a model index says; needed when
            the file names none.
        Raises DistrijaxError naming every attribute that is not supported, or the value that is not.
        """
        if not isinstance(values, Mapping):
            raise DistrijaxError(f"text encoder: the configuration must be a JSON object, not {type(values).__name__}")
        architectures = values.get("architectures")
        if isinstance(values.get("text_config"), Mapping):  # a whole CLIP model's file: its text half is what counts
            if values.get("model_type", "clip") != "clip":
                raise DistrijaxError(f"text encoder: model_type {values['model_type']!r} is not supported; use a CLIP")
            values = values["text_config"]
            architectures = values.get("architectures") or architectures
        model_type = values.get("model_type", "clip_text_model")
        if model_type not in ("clip_text_model", "clip"):
            raise DistrijaxError(
                f"text encoder: model_type {model_type!r} is not supported; supported: clip_text_model (CLIP)"
            )

        names = {field.name for field in dataclasses.fields(cls)} - {"with_projection"}
        unknown = sorted(set(values) - names - IGNORED - set(REQUIRED) - {"architectures", "model_type"})
        if unknown:
            raise DistrijaxError(f"text encoder: attributes that are not supported: {', '.join(unknown)}")
        for name, allowed in REQUIRED.items():
            if name in values and values[name] not in allowed:
                raise DistrijaxError(f"text encoder: {name} = {values[name]!r} is not supported; only {allowed[0]} is")

        if with_projection is None:
            with_projection = _projection_of(architectures)
        given = {name: values[name] for name in names if name in values}
        if given.get("projection_dim", 0) is None:
            if with_projection:
                raise DistrijaxError("text encoder: projection_dim is null, yet the model has a projection")
            del given["projection_dim"]
        return cls(**given, with_projection=with_projection)

    def to_json(self) -> dict[str, Any]:
        """A `config.json` that transformers loads; `from_json` gives this configuration back."""
        values = dataclasses.asdict(self)
        with_projection = values.pop("with_projection")
        architecture = next(name for name, projects in WITH_PROJECTION.items() if projects == with_projection)
        return {"architectures": [architecture], "model_type": "clip_text_model"} | values


def _check_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DistrijaxError(f"text encoder: {name} is {value!r}; it must be a whole number, at least {least}")


def _projection_of(architectures: Any) -> bool:
    if isinstance(architectures, (list, tuple)) and len(architectures) == 1 and architectures[0] in WITH_PROJECTION:
        return WITH_PROJECTION[architectures[0]]
    raise DistrijaxError(
        f"text encoder: architectures is {architectures!r}; it must name one of {', '.join(WITH_PROJECTION)}, which "
        "says whether the pooled state is projected"
    )

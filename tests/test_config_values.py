"""Every entry of every configuration with every wrong kind of value: refused by name, before anything is built."""

import inspect
import json
import logging
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
from test_schedulers import class_of_theirs

from distrijax.checkpoint import open_source
from distrijax.checkpoint.folder import checked_index
from distrijax.checkpoint.known import packaged
from distrijax.config import TextEncoderConfig, UNetConfig, VAEConfig, unet, vae
from distrijax.demo import MODEL
from distrijax.errors import DistrijaxError
from distrijax.schedulers import SCHEDULERS, scheduler_from_config
from distrijax.schedulers.options import ALL_OPTIONS, OPTIONS
from distrijax.text.tokenizer import ENTRIES, Tokenizer

pytestmark = pytest.mark.fast

NAN, INF = float("nan"), float("inf")
WRONG = [None, "x", "", [], {}, [[]], ["x"], [None], [NAN], [0], NAN, INF, -INF, -1, 0, 0.5, 2.5, 10**7, 10**30, True]

# What each kind of entry may be of those. Sizes, counts and lists of them may be none.
FITS: dict[str, list[Any]] = {
    "size": [],
    "size or null": [None],
    "flag": [None, True],
    "between 0 and 1": [0.5],
    "positive": [0.5, 2.5, 10**7],
    "positive or null": [None, 0.5, 2.5, 10**7],
    "zero or one": [0],
    "count": [0],
    "id": [0, 10**7],
    "id or null": [None, -1, 0, 10**7],
    "fixed": [],
    "fixed at null": [None],
    "fixed at false": [None, 0],
    "fixed at true": [True],
    "log ratio": [-INF, -1, 0, 0.5, 2.5, 10**7, 10**30],
    "list": [[], [0]],
    "depths": [[0], 0],
    "depths or null": [None, [0], 0],
    "betas": [None],
}
UNET = {
    "size": "addition_time_embed_dim attention_head_dim block_out_channels cross_attention_dim in_channels "
    "layers_per_block norm_num_groups out_channels projection_class_embeddings_input_dim",
    "size or null": "num_attention_heads sample_size time_cond_proj_dim",
    "flag": "flip_sin_to_cos use_linear_projection",
    "between 0 and 1": "norm_eps",
    "zero or one": "freq_shift",
    "depths": "transformer_layers_per_block",
    "depths or null": "reverse_transformer_layers_per_block",
    "fixed": "_class_name act_fn addition_embed_type attention_type resnet_time_scale_shift time_embedding_type "
    "conv_in_kernel conv_out_kernel down_block_types up_block_types",
    "fixed at true": "downsample_padding resnet_out_scale_factor",  # 1, which equals True
    "fixed at false": "center_input_sample class_embeddings_concat dual_cross_attention only_cross_attention "
    "mid_block_only_cross_attention resnet_skip_time_act",
    "fixed at null": "class_embed_type cross_attention_norm encoder_hid_dim encoder_hid_dim_type num_class_embeds "
    "time_embedding_act_fn time_embedding_dim timestep_post_act mid_block_type",
}
VAE = {
    "size": "block_out_channels in_channels latent_channels layers_per_block norm_num_groups out_channels",
    "size or null": "sample_size",
    "flag": "force_upcast",
    "fixed": "_class_name act_fn down_block_types up_block_types",
    "fixed at null": "shift_factor",
    "fixed at true": "mid_block_add_attention use_post_quant_conv use_quant_conv",
}
TEXT = {
    "size": "hidden_size intermediate_size max_position_embeddings num_attention_heads num_hidden_layers",
    "between 0 and 1": "layer_norm_eps",
    "id": "eos_token_id",
    "id or null": "bos_token_id pad_token_id",
    "fixed": "hidden_act model_type",
    "fixed at null": "quantization_config",
}
SCHEDULER = {
    "between 0 and 1": "beta_start beta_end",
    "betas": "trained_betas",
    "size": "num_train_timesteps original_inference_steps solver_order",
    "count": "steps_offset",
    "positive": "clip_sample_range timestep_scaling rho sigma_data",
    "positive or null": "sigma_min sigma_max",
    "log ratio": "lambda_min_clipped",
    "list": "disable_corrector",
    "flag": "clip_sample euler_at_final lower_order_final predict_x0 rescale_betas_zero_snr set_alpha_to_one "
    "skip_prk_steps use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas",
    "fixed at false": "thresholding use_flow_sigmas use_dynamic_shifting",
    "fixed at null": "shift_terminal solver_p noise_sampler_seed",
    "fixed": "beta_schedule final_sigmas_type interpolation_type prediction_type timestep_spacing timestep_type",
}
# Entries with other rules: scale factors, 1 or null, and what is checked elsewhere.
ELSEWHERE = {
    "latents_mean",
    "latents_std",
    "mid_block_scale_factor",
    "scaling_factor",
    "projection_dim",
    "pruned_heads",
    "vocab_size",
    "variance_type",
}
IGNORED = {"dropout", "addition_embed_type_num_heads"}


def fits(kind: str, value: Any) -> bool:
    return any(type(value) is type(fit) and (value == fit) for fit in FITS[kind])


def cases(kinds: dict[str, str]) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for kind, names in kinds.items()
        for name in names.split()
        for value in WRONG
        if not fits(kind, value)
    ]


def refused_by_name(build: Callable[[dict[str, Any]], Any], base: dict[str, Any], kinds: dict[str, str]) -> None:
    build(base)
    for name, value in cases(kinds):
        with pytest.raises(DistrijaxError, match=name.removeprefix("num_")):
            build(base | {name: value})


def test_the_lists_above_are_complete() -> None:
    for table, kinds in ((unet.ENTRIES, UNET), (vae.ENTRIES, VAE), (OPTIONS, SCHEDULER)):
        assert {name for names in kinds.values() for name in names.split()} == {*table} - ELSEWHERE - IGNORED
    fields = {*TextEncoderConfig.__dataclass_fields__} - {"with_projection"}
    assert fields - ELSEWHERE <= {name for names in TEXT.values() for name in names.split()}


def test_the_u_net() -> None:
    refused_by_name(UNetConfig.from_json, packaged("base_unet"), UNET)


def test_the_autoencoder() -> None:
    refused_by_name(VAEConfig.from_json, packaged("vae"), VAE)
    for value in WRONG:
        if value not in (0.5, 2.5):
            with pytest.raises(DistrijaxError, match="scaling_factor"):
                VAEConfig.from_json(packaged("vae") | {"scaling_factor": value})


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_the_text_encoders(name: str) -> None:
    base, projects = packaged(name), name == "text_encoder_2"
    refused_by_name(lambda json: TextEncoderConfig.from_json(json, with_projection=projects), base, TEXT)
    for value in WRONG:
        if projects or value is not None:
            with pytest.raises(DistrijaxError, match="projection_dim"):
                TextEncoderConfig.from_json(base | {"projection_dim": value}, with_projection=projects)


@pytest.mark.parametrize("short", list(SCHEDULERS))
def test_the_schedulers(short: str) -> None:
    cls = SCHEDULERS[short]
    has = {option.name for option in cls._options()} | set(cls.off)
    mine = {kind: " ".join(has & set(names.split())) for kind, names in SCHEDULER.items()}
    refused_by_name(lambda json: scheduler_from_config(json, short), packaged("scheduler"), mine)


def test_the_tokenizer() -> None:
    files = dict(open_source(MODEL).tokenizers["tokenizer"])
    kinds = {"size or null": "model_max_length", "fixed at null": "padding_side truncation_side tokenizer_class"}
    assert {name for names in kinds.values() for name in names.split()} == set(ENTRIES)

    def build(settings: dict[str, Any]) -> None:
        Tokenizer(files | {"tokenizer_config.json": json.dumps(settings).encode()})

    for name, value in cases(kinds):
        if (name, value) not in (("model_max_length", 10**7), ("model_max_length", 10**30)):  # unset
            with pytest.raises(DistrijaxError, match=name):
                build(json.loads(files["tokenizer_config.json"]) | {name: value})


@pytest.mark.parametrize("flag", ["force_zeros_for_empty_prompt", "requires_aesthetics_score"])
def test_the_flags_of_a_pipeline(flag: str) -> None:
    for value in WRONG:
        if value not in (None, True) or type(value) is int:
            with pytest.raises(DistrijaxError, match=flag):
                checked_index(packaged("base_model_index") | {flag: value}, "model_index.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_num_groups": 30}, "norm_num_groups 30 does not divide block_out_channels 320"),
        ({"attention_head_dim": [5, 10, 21]}, "attention_head_dim 21 does not divide block_out_channels 1280"),
        ({"num_attention_heads": 7}, "attention_head_dim 7 does not divide"),
        ({"block_out_channels": [325, 640, 1280], "norm_num_groups": 5}, r"block_out_channels\[0\] is 325.*even"),
        ({"transformer_layers_per_block": [0, [2], 10]}, "transformer_layers_per_block has 1 entries for a block of 2"),
        ({"transformer_layers_per_block": [0, [2, 2], 10]}, "reverse_transformer_layers_per_block has 2 .* of 3"),
        ({"reverse_transformer_layers_per_block": [1, 1]}, "reverse_transformer_layers_per_block has 2 entries"),
        ({"addition_time_embed_dim": 255}, "addition_time_embed_dim is 255; it must be even"),
        ({"sample_size": [128, 128, 128]}, "sample_size has 3 entries"),
    ],
)
def test_values_that_do_not_fit_each_other(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DistrijaxError, match=message):
        UNetConfig.from_json(packaged("base_unet") | change)


def test_everything_that_diffusers_has_is_known() -> None:
    """Only what diffusers itself ignores may be ignored here; `upcast_attention` has no effect there either."""

    def parameters(cls: type) -> set[str]:
        return {*inspect.signature(cls.__init__).parameters} - {"self"}

    assert parameters(diffusers.UNet2DConditionModel) - {*unet.ENTRIES} == {"upcast_attention"}
    assert parameters(diffusers.AutoencoderKL) <= {*vae.ENTRIES}
    for cls in SCHEDULERS.values():
        theirs = parameters(class_of_theirs(cls.class_name))
        assert theirs <= ALL_OPTIONS
        supported = {option.name for option in cls._options()} | set(cls.off)
        unused = {"dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"}
        if cls.class_name == "TCDScheduler":  # its step uses none of these
            unused |= {"thresholding", "clip_sample", "clip_sample_range", "set_alpha_to_one", "timestep_scaling"}
        assert theirs - supported - unused <= {"set_alpha_to_one"}, cls


def test_entries_without_influence_are_ignored_and_named(caplog: pytest.LogCaptureFixture) -> None:
    average = {"decay": 0.9999, "optimization_step": 4000, "use_ema_warmup": False, "upcast_attention": True}
    with caplog.at_level(logging.INFO):
        assert UNetConfig.from_json(packaged("base_unet") | average) == UNetConfig.from_json(packaged("base_unet"))
        VAEConfig.from_json(packaged("vae") | {"a_later_option": None})
        for values in ({"_attn_implementation": "sdpa", "rope_theta": 1e4}, {"is_decoder": False, "pruned_heads": {}}):
            base = packaged("text_encoder")
            assert TextEncoderConfig.from_json(base | values, with_projection=False) == TextEncoderConfig.from_json(
                base, with_projection=False
            )
        scheduler_from_config(packaged("scheduler") | {"invert_sigmas": False, "a_later_option": 3})
        scheduler_from_config(packaged("scheduler") | {"variance_type": "fixed_small"}, "dpmsolver++")
    loud = " ".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert all(f"{name}=" in loud for name in ("decay", "upcast_attention", "rope_theta", "a_later_option"))
    assert not any(f"{name}=" in loud for name in ("use_ema_warmup", "_attn_implementation", "clip_sample"))
    assert all(f"{name}=" in caplog.text for name in ("use_ema_warmup", "a_later_option", "invert_sigmas"))


def test_sizes_that_are_no_squares() -> None:
    config = UNetConfig.from_json(packaged("base_unet") | {"sample_size": [96, 128]})
    assert config.native_size == (96, 128)
    assert UNetConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert UNetConfig.from_json(packaged("base_unet")).native_size == (128, 128)

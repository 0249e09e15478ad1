"""Prompts and micro-conditioning against diffusers on torch."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from distrijax.pipelines.prompt import (
    PromptEmbeds,
    added_time_ids,
    check_time_ids,
    encode_ids,
    encode_prompt,
    refiner_time_ids,
)
from distrijax.pipelines.tokenizer import Tokenizer
from test_text_encoder import our_encoder, torch_encoder
from test_tokenizer import write_clip_tokenizer

from distrijax.errors import DistrijaxError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    write_clip_tokenizer(root / "tokenizer")
    write_clip_tokenizer(root / "tokenizer_2", pad="!", form="json")
    return root


class Pair:
    """diffusers' pipeline and, of the same weights, what `encode_prompt` takes here."""

    def __init__(self, folders, *, base: bool = True, both_project: bool = False, **config):
        names = ["tokenizer", "tokenizer_2"] if base else ["tokenizer_2"]
        self.tokenizers = [Tokenizer(folders / name) for name in names]
        size = self.tokenizers[0].vocab_size
        end = size - 1
        encoders = [
            torch_encoder(
                0, projected=both_project, vocab_size=size, hidden_size=32, hidden_act="quick_gelu", eos_token_id=2
            ),
            torch_encoder(1, vocab_size=size, hidden_size=48, num_hidden_layers=4, eos_token_id=end),
        ][-len(names) :]
        self.encoders = [our_encoder(encoder) for encoder in encoders]
        clip = [transformers.CLIPTokenizer.from_pretrained(folders / name) for name in names]
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            cross_attention_dim=80 if base else 48,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 40,
        )
        self.theirs = diffusers.StableDiffusionXLPipeline(
            vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
            text_encoder=encoders[0] if base else None,
            text_encoder_2=encoders[-1],
            tokenizer=clip[0] if base else None,
            tokenizer_2=clip[-1],
            unet=unet,
            scheduler=diffusers.EulerDiscreteScheduler(),
            add_watermarker=False,
            **config,
        )
        self.zeros = config.get("force_zeros_for_empty_prompt", True)

    def encode(self, *, guided: bool = True, **arguments):
        return encode_prompt(
            self.tokenizers, self.encoders, guided=guided, force_zeros_for_empty_prompt=self.zeros, **arguments
        )

    def assert_equal(self, *, guided: bool = True, **arguments) -> None:
        ours = self.encode(guided=guided, **arguments)
        tensors = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
        with torch.no_grad():
            context, n_context, pooled, n_pooled = self.theirs.encode_prompt(
                **{"prompt": None} | tensors, do_classifier_free_guidance=guided
            )
        theirs = [PromptEmbeds(context, pooled), PromptEmbeds(n_context, n_pooled) if guided else None]
        for mine, reference in zip(ours, theirs, strict=True):
            assert (mine is None) == (reference is None)
            if mine is None:
                continue
            for a, b in zip(mine, reference, strict=True):
                assert a.shape == tuple(b.shape)
                # fp32, sums in another order; the measured difference is 3e-6 of a standard deviation.
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(b.std()))


@pytest.fixture(scope="module")
def base(folders):
    return Pair(folders)


@pytest.fixture(scope="module")
def no_zeros(folders):
    return Pair(folders, force_zeros_for_empty_prompt=False)


@pytest.fixture(scope="module")
def refiner(folders):
    return Pair(folders, base=False, force_zeros_for_empty_prompt=False)


def embeds(batch: int, length: int = 77, width: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randn(batch, length, width).astype(np.float32)


GIVEN = {"prompt_embeds": embeds(2), "pooled_prompt_embeds": embeds(2)[:, 0, :40]}
NEGATIVE = {"negative_prompt_embeds": embeds(2, seed=1), "negative_pooled_prompt_embeds": embeds(2, seed=1)[:, 0, :40]}

CASES = {
    "plain": {"prompt": "a photo of the red cat"},
    "empty": {"prompt": ""},
    "unguided": {"prompt": "the dog", "negative_prompt": "blue", "guided": False},
    "second": {"prompt": "the dog", "prompt_2": "a blue square", "negative_prompt": "cat"},
    "second empty": {"prompt": "the dog", "prompt_2": "", "negative_prompt": "cat", "negative_prompt_2": ""},
    "both negative": {"prompt": "the dog", "negative_prompt": "blue", "negative_prompt_2": "red"},
    "second negative alone": {"prompt": "the dog", "negative_prompt_2": "red"},
    "empty negative": {"prompt": "the dog", "negative_prompt": ""},
    "lists": {
        "prompt": ["the cat above!", ""],
        "prompt_2": ["a", "b"],
        "negative_prompt": ["x", "y"],
        "negative_prompt_2": ["1", "2"],
    },
    "one negative for all": {"prompt": ["the cat", "the dog"], "negative_prompt": "blue"},
    "images": {"prompt": ["the cat", "the dog"], "negative_prompt": ["x", "y"], "num_images_per_prompt": 3},
    "images, zeros": {"prompt": ["the cat", "the dog"], "num_images_per_prompt": 2},
    "skip 0": {"prompt": "the cat", "negative_prompt": "x", "clip_skip": 0},
    "skip 1": {"prompt": "the cat", "negative_prompt": "x", "clip_skip": 1},
    "skip 2": {"prompt": "the cat", "clip_skip": 2},
    "skip -1": {"prompt": "the cat", "clip_skip": -1},
    "long": {"prompt": "the cat and " * 40, "negative_prompt": "blue " * 100},
    "embeds": GIVEN,
    "embeds, unguided": GIVEN | {"guided": False},
    "embeds, negative text": GIVEN | {"negative_prompt": "blue", "num_images_per_prompt": 2},
    "all embeds": GIVEN | NEGATIVE | {"num_images_per_prompt": 2},
    "short embeds, negative text": {
        "prompt_embeds": embeds(1, 12),
        "pooled_prompt_embeds": embeds(1)[:, 0, :40],
        "negative_prompt": "the cat and the dog above the red square and blue",
    },
    "negative embeds alone": {"prompt": ["the cat", "the dog"]} | NEGATIVE,
    "own pooled": {"prompt": ["the cat", "dog"], "pooled_prompt_embeds": GIVEN["pooled_prompt_embeds"]},
    "own negative pooled": {
        "prompt": ["the cat", "dog"],
        "negative_prompt": "x",
        "negative_pooled_prompt_embeds": GIVEN["pooled_prompt_embeds"],
    },
    "own negative pooled, zeros": {
        "prompt": ["the cat", "dog"],
        "negative_pooled_prompt_embeds": GIVEN["pooled_prompt_embeds"],
    },
}


@pytest.mark.parametrize("case", CASES)
def test_base_equals_diffusers(base, case):
    base.assert_equal(**CASES[case])


@pytest.mark.parametrize("case", ["plain", "second negative alone", "lists", "embeds"])
def test_no_forced_zeros(no_zeros, case):
    no_zeros.assert_equal(**CASES[case])


@pytest.mark.parametrize("case", ["plain", "second", "lists", "images", "skip 1", "skip 2"])
def test_refiner_equals_diffusers(refiner, case):
    refiner.assert_equal(**CASES[case])


def test_the_first_projection_counts(folders):
    Pair(folders, both_project=True).assert_equal(**CASES["both negative"])


def test_prompts_never_recompile(base):
    base.encode(prompt=["the cat", "the dog"], negative_prompt="x")
    before = encode_ids._cache_size()
    other = Pair.__new__(Pair)
    other.__dict__ = base.__dict__ | {"encoders": [our_encoder(base.theirs.text_encoder), base.encoders[1]]}
    for pair, prompt in (base, ["", "blue " * 90]), (other, ["red", "a square"]):
        pair.encode(prompt=prompt, negative_prompt="other", prompt_2=["x", "y"])
    assert encode_ids._cache_size() == before


def test_a_program_of_ones_own(base):
    calls = []

    def program(encoders, ids, clip_skip):
        calls.append(([i.shape for i in ids], clip_skip))
        return encode_ids(encoders, ids, clip_skip)

    arguments = {"prompt": "the cat", "negative_prompt": "x", "clip_skip": 1}
    ours, own = base.encode(**arguments), base.encode(**arguments, encode=program)
    jax.tree.map(np.testing.assert_array_equal, ours, own)
    shapes = [(1, 77), (1, 77)]
    assert calls == [(shapes, 1), (shapes, 0)]  # clip_skip does not apply to the negative prompt


def test_dtype_follows_the_encoders(base):
    encoders = [our_encoder(e, jnp.bfloat16) for e in (base.theirs.text_encoder, base.theirs.text_encoder_2)]
    for arguments in {"prompt": "the cat"}, {"prompt": "the cat", "negative_prompt": "x"}, GIVEN, GIVEN | NEGATIVE:
        out = encode_prompt(base.tokenizers, encoders, **arguments)
        assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype(jnp.bfloat16)}
    # Embeddings alone need no encoder.
    plain, _ = encode_prompt([], [], **{name: value.astype(np.float64) for name, value in GIVEN.items()})
    assert plain.context.dtype == jnp.float32
    np.testing.assert_array_equal(plain.context, GIVEN["prompt_embeds"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give prompt or prompt_embeds"),
        ({"prompt": 3}, "prompt must be a string or a list of strings, not int"),
        ({"prompt": ("a", "b")}, "prompt must be a string or a list of strings, not tuple"),
        ({"prompt": ["a", None]}, "prompt must hold strings, but holds None"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": "a", "prompt_2": 1}, "prompt_2 must be a string"),
        ({"prompt": "a", "negative_prompt": 1}, "negative_prompt must be a string"),
        ({"prompt": "a"} | GIVEN, "both prompt and prompt_embeds are given"),
        ({"prompt_2": "a"} | GIVEN, "both prompt_2 and prompt_embeds are given"),
        ({"prompt": "a", "negative_prompt": "b"} | NEGATIVE, "both negative_prompt and negative_prompt_embeds"),
        ({"prompt": "a", "negative_prompt_2": "b"} | NEGATIVE, "both negative_prompt_2 and negative_prompt_embeds"),
        ({"prompt_embeds": embeds(1)}, "prompt_embeds needs pooled_prompt_embeds"),
        (
            {"prompt": "a", "negative_prompt_embeds": embeds(1)},
            "negative_prompt_embeds needs negative_pooled_prompt_embeds",
        ),
        ({"prompt": "a"} | NEGATIVE, r"negative_prompt_embeds has the shape .* with B = 1 prompts"),
        (GIVEN | NEGATIVE | {"prompt_embeds": embeds(2, 9)}, r"\(2, 9, 80\) but negative_prompt_embeds is"),
        (GIVEN | {"pooled_prompt_embeds": embeds(3)[:, 0]}, "pooled_prompt_embeds has the shape"),
        (GIVEN | {"prompt_embeds": embeds(2)[0]}, "prompt_embeds has the shape"),
        (
            {"prompt_embeds": embeds(1, 99), "pooled_prompt_embeds": embeds(1)[0, :1, :40], "negative_prompt": "x"},
            "99 tokens is too long for a text encoder with 77 positions",
        ),
        ({"prompt": ["a", "b"], "negative_prompt": ["x"]}, "negative_prompt has 1 entries for 2 prompts"),
        ({"prompt": ["a", "b"], "negative_prompt": "x", "negative_prompt_2": ["x"] * 3}, "negative_prompt_2 has 3"),
        ({"prompt": ["a", "b"], "prompt_2": "c"}, "prompt has 2 entries, but prompt_2 1"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"prompt": "a", "clip_skip": 3}, "clip_skip is 3; for these text encoders it can be -1 to 2"),
        ({"prompt": "a", "clip_skip": "1"}, "clip_skip is '1'"),
    ],
)
def test_refuses(base, arguments, message):
    with pytest.raises(DistrijaxError, match=message):
        base.encode(**arguments)


def test_refuses_parts_that_do_not_belong_together(base, tmp_path):
    small = our_encoder(torch_encoder())
    with pytest.raises(DistrijaxError, match="the two do not belong together"):
        encode_prompt(base.tokenizers[:1], [small], "the cat")
    with pytest.raises(DistrijaxError, match="no text encoder has a projection"):
        encode_prompt(base.tokenizers[:1], base.encoders[:1], "the cat")
    with pytest.raises(DistrijaxError, match="2 tokenizers for 1 text encoders"):
        encode_prompt(base.tokenizers, [small], "the cat")
    with pytest.raises(DistrijaxError, match="there is no text encoder"):
        encode_prompt([], [], "the cat")
    write_clip_tokenizer(tmp_path / "short", length=50)
    with pytest.raises(DistrijaxError, match=r"differ in model_max_length: \[77, 50\]"):
        encode_prompt([base.tokenizers[0], Tokenizer(tmp_path / "short")], base.encoders, "the cat")


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    "negative",
    [
        {},
        {"negative_original_size": (64, 32)},
        {"negative_original_size": (64, 32), "negative_target_size": (8, 24)},
        {
            "negative_original_size": (64, 32),
            "negative_crops_coords_top_left": (5, 6),
            "negative_target_size": (8, 24),
        },
    ],
)
def test_time_ids_reach_the_unet_as_in_diffusers(base, batch, negative):
    """What diffusers' U-Net is given in a run of one step, negative rows first."""
    seen = []

    def watch(module, args, kwargs):
        seen.append(kwargs["added_cond_kwargs"]["time_ids"].numpy())

    sizes = {"original_size": (100, 200), "crops_coords_top_left": (3, 4), "target_size": (16, 8)}
    handle = base.theirs.unet.register_forward_pre_hook(watch, with_kwargs=True)
    base.theirs.set_progress_bar_config(disable=True)
    base.theirs(
        "a", height=8, width=8, num_inference_steps=1, num_images_per_prompt=batch, output_type="latent",
        **sizes, **negative,
    )  # fmt: skip
    handle.remove()
    ids, negative_ids = added_time_ids(**sizes, **negative, batch=batch)
    assert ids.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([negative_ids, ids]), seen[0])


def test_refiner_time_ids():
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline.__new__(diffusers.StableDiffusionXLImg2ImgPipeline)
    unet = diffusers.UNet2DConditionModel.__new__(diffusers.UNet2DConditionModel)
    torch.nn.Module.__init__(unet)
    unet.register_to_config(addition_time_embed_dim=8)
    unet.add_embedding = torch.nn.ModuleDict()
    unet.add_embedding.linear_1 = torch.nn.Linear(5 * 8 + 40, 4)
    object.__setattr__(pipe, "unet", unet)
    pipe.register_to_config(requires_aesthetics_score=True)
    theirs = pipe._get_add_time_ids(
        (100, 200), (3, 4), (16, 8), 6.5, 2.0, (64, 32), (5, 6), (9, 9), torch.float32, text_encoder_projection_dim=40
    )
    ours = refiner_time_ids(
        (100, 200),
        (3, 4),
        batch=2,
        aesthetic_score=6.5,
        negative_aesthetic_score=2.0,
        negative_original_size=(64, 32),
        negative_crops_coords_top_left=(5, 6),
    )
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, np.repeat(reference.numpy(), 2, 0))
    _, negative = refiner_time_ids((100, 200), (3, 4), batch=1)
    np.testing.assert_array_equal(negative, [[100, 200, 0, 0, 2.5]])


def test_time_ids_must_fit_the_unet():
    check_time_ids(6, 1280, 256, 2816)
    check_time_ids(5, 1280, 256, 2560)
    with pytest.raises(DistrijaxError, match="set requires_aesthetics_score"):
        check_time_ids(6, 1280, 256, 2560)
    with pytest.raises(DistrijaxError, match="must be off"):
        check_time_ids(5, 1280, 256, 2816)
    with pytest.raises(DistrijaxError, match="takes 2816 values, but 6 time ids of 256 and a pooled vector of 768"):
        check_time_ids(6, 768, 256, 2816)


@pytest.mark.parametrize("wrong", [7, (1, 2, 3), "ab", (1, None)])
def test_sizes_are_pairs(wrong):
    with pytest.raises(DistrijaxError, match=r"target_size is .* must be a pair of numbers"):
        added_time_ids((1, 2), (0, 0), wrong, batch=1)

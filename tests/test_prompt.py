"""Text conditioning against diffusers on torch."""

import dataclasses
from types import SimpleNamespace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from test_text_encoder import our_encoder, torch_encoder
from test_tokenizer import write_clip_tokenizer

from distrijax.errors import DistrijaxError
from distrijax.text.prompt import PromptInputs, encode_ids, encode_prompt
from distrijax.text.tokenizer import Tokenizer

ENCODE = jax.jit(encode_ids, static_argnames="clip_skip")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    write_clip_tokenizer(root / "tokenizer")
    write_clip_tokenizer(root / "tokenizer_2", pad="!", form="json")
    return root


class Pair:
    """diffusers' pipeline and, of the same weights, what `encode_prompt` takes here."""

    def __init__(self, folders, *, base: bool = True, both_project: bool = False, time_ids: int = 6, **config):
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
            projection_class_embeddings_input_dim=time_ids * 8 + 40,
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

    def encode(self, *, guided: bool = True, encode=ENCODE, **arguments):
        return encode_prompt(
            PromptInputs(**arguments),
            self.tokenizers,
            self.encoders,
            guided=guided,
            force_zeros_for_empty_prompt=self.zeros,
            encode=encode,
        )

    def assert_equal(self, *, guided: bool = True, **arguments) -> None:
        ours = self.encode(guided=guided, **arguments)
        assert {type(array) for array in ours} == {np.ndarray}
        assert ours.context.shape[1] == PromptInputs(**arguments).batch
        tensors = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
        with torch.no_grad():
            context, n_context, pooled, n_pooled = self.theirs.encode_prompt(
                **{"prompt": None} | tensors, do_classifier_free_guidance=guided
            )
        theirs = [(n_context, context), (n_pooled, pooled)] if guided else [(context,), (pooled,)]
        for mine, branches in zip(ours, theirs, strict=True):
            assert mine.shape == (len(branches), *branches[0].shape)
            for a, b in zip(mine, branches, strict=True):
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


def test_prompts_and_weights_are_arguments(base):
    """Neither other texts nor other weights compile `encode_ids` again."""
    # A function of its own, because programs of one function share a cache.
    encode = jax.jit(lambda *arrays, clip_skip: encode_ids(*arrays, clip_skip=clip_skip), static_argnames="clip_skip")
    base.encode(prompt=["the cat", "the dog"], negative_prompt="x", encode=encode)
    other = Pair.__new__(Pair)
    other.__dict__ = base.__dict__ | {"encoders": [our_encoder(base.theirs.text_encoder), base.encoders[1]]}
    for pair, prompt in (base, ["", "blue " * 90]), (other, ["red", "a square"]):
        pair.encode(prompt=prompt, negative_prompt="other", prompt_2=["x", "y"], encode=encode)
    assert encode._cache_size() == 1


def test_encoders_run_once_for_each_text(base):
    calls = []

    def encode(encoders, ids, *arrays, clip_skip):
        calls.append(([i.shape for i in ids], clip_skip))
        return encode_ids(encoders, ids, *arrays, clip_skip=clip_skip)

    shapes = [(1, 77), (1, 77)]
    for arguments, expected in [
        # clip_skip does not apply to the negative prompt
        (
            {"prompt": "a", "negative_prompt": "x", "clip_skip": 1, "num_images_per_prompt": 3},
            [(shapes, 1), (shapes, 0)],
        ),
        ({"prompt": "a"}, [(shapes, 0)]),
        ({"prompt": "a", "negative_prompt": "x", "guided": False}, [(shapes, 0)]),
        (GIVEN, []),
    ]:
        base.encode(**arguments, encode=encode)
        assert calls == expected
        calls.clear()


@pytest.mark.fast
def test_batch_is_known_before_encoding():
    assert PromptInputs("a").batch == 1
    assert PromptInputs(["a", "b"], num_images_per_prompt=np.int64(3)).batch == 6
    assert PromptInputs(**GIVEN, num_images_per_prompt=2).batch == 4


def test_dtype_follows_the_encoders(base):
    other = Pair.__new__(Pair)
    encoders = [our_encoder(e, jnp.bfloat16) for e in (base.theirs.text_encoder, base.theirs.text_encoder_2)]
    other.__dict__ = base.__dict__ | {"encoders": encoders}
    images = {"num_images_per_prompt": 2}
    for arguments in {"prompt": "the cat"}, {"prompt": "the cat", "negative_prompt": "x"}, GIVEN, GIVEN | NEGATIVE:
        assert {array.dtype for array in other.encode(**arguments | images)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.fast
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, torch.tensor, lambda x: jnp.asarray(x, jnp.bfloat16)])
def test_embeds_of_any_library_need_no_encoder(kind):
    arguments = {name: kind(value) for name, value in (GIVEN | NEGATIVE).items()}
    with jax.transfer_guard_host_to_device("disallow_explicit"):  # what is on the host stays there
        ours = encode_prompt(PromptInputs(**arguments), [], [], guided=True, force_zeros_for_empty_prompt=True)
    assert {type(array) for array in ours} == {np.ndarray}
    for prefix, branch in ("negative_", 0), ("", 1):
        for name, array in zip(("prompt_embeds", "pooled_prompt_embeds"), ours, strict=True):
            expected = np.asarray(arguments[prefix + name])
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array[branch], expected)


@pytest.mark.fast
def test_float64_embeds_become_float32():
    doubles = {name: value.astype(np.float64) for name, value in GIVEN.items()}
    ours = encode_prompt(PromptInputs(**doubles), [], [], guided=True, force_zeros_for_empty_prompt=True)
    assert {array.dtype for array in ours} == {jnp.dtype(jnp.float32)}


def test_a_string_stands_for_all_prompts(base):
    short = base.encode(prompt=["the cat", "dog"], prompt_2="red", negative_prompt=["x", "y"], negative_prompt_2="blue")
    long = base.encode(
        prompt=["the cat", "dog"],
        prompt_2=["red", "red"],
        negative_prompt=["x", "y"],
        negative_prompt_2=["blue", "blue"],
    )
    jax.tree.map(np.testing.assert_array_equal, short, long)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give prompt or prompt_embeds"),
        ({"prompt": 3}, "prompt is 3; it must be a string or a list of strings"),
        ({"prompt": ("a", "b")}, "prompt is .*; it must be a string or a list of strings"),
        ({"prompt": ["a", None]}, "prompt is .*; it must be a string or a list of strings"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": "a", "prompt_2": 1}, "prompt_2 is 1; it must be a string"),
        ({"prompt": "a", "negative_prompt": 1}, "negative_prompt is 1; it must be a string"),
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
        ({"prompt": ["a", "b"], "prompt_2": ["c"]}, "prompt_2 has 1 entries for 2 prompts"),
        (GIVEN | {"negative_prompt": ["x"]}, "negative_prompt has 1 entries for 2 prompts"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"prompt": "a", "num_images_per_prompt": True}, "num_images_per_prompt is True"),
        ({"prompt": "a", "clip_skip": 3}, "clip_skip is 3; it must be a whole number, from -1 to 2"),
        ({"prompt": "a", "clip_skip": -2}, "clip_skip is -2"),
        ({"prompt": "a", "clip_skip": "1"}, "clip_skip is '1'"),
        ({"prompt": "a", "clip_skip": False}, "clip_skip is False"),
        (GIVEN | {"prompt_embeds": np.float32(3)}, r"prompt_embeds has the shape \(\)"),
    ],
)
def test_refuses(base, arguments, message):
    with pytest.raises(DistrijaxError, match=message):
        base.encode(**arguments)


def test_refuses_parts_that_do_not_belong_together(base, tmp_path):
    def encode(tokenizers, encoders):
        encode_prompt(PromptInputs("the cat"), tokenizers, encoders, guided=True, force_zeros_for_empty_prompt=True)

    small = our_encoder(torch_encoder())
    with pytest.raises(DistrijaxError, match=r"produced the id .* the two do not belong together"):
        encode(base.tokenizers[:1], [small])
    wrong = base.encoders[-1].config.vocab_size - 2
    elsewhere = SimpleNamespace(
        config=dataclasses.replace(base.encoders[-1].config, eos_token_id=wrong), dtype="float32"
    )
    with pytest.raises(DistrijaxError, match=rf"reads the pooled state at {wrong}; the two do not belong together"):
        encode(base.tokenizers[1:], [elsewhere])
    with pytest.raises(DistrijaxError, match="no text encoder has a projection"):
        encode(base.tokenizers[:1], base.encoders[:1])
    with pytest.raises(DistrijaxError, match="2 tokenizers for 1 text encoders"):
        encode(base.tokenizers, [small])
    with pytest.raises(DistrijaxError, match="there is no text encoder"):
        encode([], [])
    write_clip_tokenizer(tmp_path / "short", length=50)
    with pytest.raises(DistrijaxError, match=r"differ in model_max_length: \[77, 50\]"):
        encode([base.tokenizers[0], Tokenizer(tmp_path / "short")], base.encoders)

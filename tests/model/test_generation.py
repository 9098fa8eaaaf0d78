"""Sampling: from the model's own distribution, reproducible, the same with every cache, and nothing pretended."""

import itertools

import pytest
import torch
from transformers import GenerationConfig, set_seed
from transformers.generation import BaseStreamer, MaxLengthCriteria, RepetitionPenaltyLogitsProcessor

from modeling_hybrid import HybridForImageGeneration, HybridForPreTraining
from modeling_hybrid.patch_codes import pixels_to_codes


HEADS = ("softmax", "logistic_mixture")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=HEADS)
def model(make_model, request):
    torch.manual_seed(0)
    return make_model(HybridForImageGeneration, noise=0.3, code_distribution=request.param)


def test_unconditional_batches(model):
    codes = model.generate(batch_size=5)
    assert codes.shape == (5, 4, 4)
    assert codes.dtype is torch.long
    assert codes.min() >= 0
    assert codes.max() <= 4
    assert model.generate().shape == (1, 4, 4)
    assert not torch.equal(codes[0], codes[1])
    pixels = model.codes_to_pixels(codes)
    assert torch.equal(pixels_to_codes(pixels, model.config), codes)
    model.log_likelihood(pixels)


@pytest.mark.parametrize("num_given_rows", [0, 2, 4])
def test_completion_keeps_the_given_rows(model, draw_images, num_given_rows):
    x = draw_images(model.config, 3)
    codes = model.generate(pixel_values=x, num_given_rows=num_given_rows, num_return_sequences=2)
    assert codes.shape == (6, 4, 4)
    completed = model.codes_to_pixels(codes)
    expected = x.repeat_interleave(2, dim=0)
    torch.testing.assert_close(completed[:, :, :num_given_rows], expected[:, :, :num_given_rows])
    if num_given_rows < 4:
        assert (completed - expected).abs().max() >= 0.5  # another level, of five
        assert not torch.equal(codes[0], codes[1])


def test_completion_of_any_number_of_patches(model, draw_images):
    given = pixels_to_codes(draw_images(model.config, 2), model.config)
    for num in range(5):
        codes = model.generate(codes=given[:, :num])
        assert torch.equal(codes[:, :num], given[:, :num])
        assert codes.shape == (2, 4, 4)


def test_a_seed_fixes_the_sample(model):
    codes = model.generate(batch_size=4, generator=seeded(7))
    assert torch.equal(model.generate(batch_size=4, generator=seeded(7)), codes)
    assert not torch.equal(model.generate(batch_size=4, generator=seeded(8)), codes)
    set_seed(7)
    codes = model.generate(batch_size=4)
    set_seed(7)
    assert torch.equal(model.generate(batch_size=4), codes)


@pytest.mark.parametrize("overrides", [{}, {"encoder_attention": "two_pass"}, {"patch_size": 1}], ids=str)
@pytest.mark.parametrize("greedy", [False, True])
def test_caches_change_nothing(make_model, draw_images, overrides, greedy):
    # In double precision no draw lies so close to the border of two codes that rounding decides.
    model = make_model(HybridForImageGeneration, noise=0.3, **overrides).double()
    x = draw_images(model.config, 4)
    for arguments in ({"batch_size": 4}, {"pixel_values": x, "num_given_rows": 2}):
        samples = [
            model.generate(**arguments, **cache, do_sample=not greedy, generator=seeded())
            for cache in (
                {"use_cache": False},
                {"use_cache": True},
                {"cache_implementation": "dynamic"},
                {"cache_implementation": "static"},
            )
        ]
        for sample in samples[1:]:
            assert torch.equal(sample, samples[0])


def test_the_cache_is_used(model, monkeypatch):
    """With it, a step passes one position; without it, all so far."""
    lengths = []
    hook = model.encoder.stack.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    model.generate()
    model.generate(use_cache=False)
    hook.remove()
    assert lengths == [1, 1, 1, 1, 1, 2, 3, 4]


def test_low_temperature_and_one_candidate_are_greedy(model):
    greedy = model.generate(batch_size=3, do_sample=False)
    assert torch.equal(greedy[0], greedy[1])
    for arguments in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert torch.equal(model.generate(batch_size=3, **arguments), greedy), arguments


@torch.no_grad()
def test_greedy_takes_the_likeliest_code_each_time(model):
    codes = model.generate(do_sample=False)
    logits = model(codes=codes).logits
    assert torch.equal(logits.argmax(-1), codes)


@torch.no_grad()
@pytest.mark.parametrize("warp", [{"top_p": 0.7}, {"top_k": 2}], ids=str)
def test_unlikely_codes_are_never_drawn(model, warp):
    codes = model.generate(batch_size=300, **warp, generator=seeded())
    probabilities = model(codes=codes).logits.softmax(-1)
    drawn = probabilities.gather(-1, codes[..., None])
    likelier = torch.where(probabilities > drawn + 1e-6, probabilities, 0)
    if "top_p" in warp:
        assert (likelier.sum(-1) < 0.7 + 1e-6).all()
    else:
        assert ((likelier > 0).sum(-1) < 2).all()


@pytest.mark.parametrize(
    "space",
    [
        {"image_size": 2, "patch_size": 1, "num_levels": 3},
        {"image_size": 2, "patch_size": 2, "num_levels": 3},
    ],
    ids=["S=4 K=1", "S=1 K=4"],
)
@pytest.mark.parametrize("view_kind", [0, 1])
@torch.no_grad()
def test_samples_follow_the_exact_probabilities(make_model, space, view_kind):
    """A chi-square test over all 81 images of a space; its 1 - 1e-6 quantile at 80 degrees of freedom is 155."""
    model = make_model(HybridForImageGeneration, noise=0.15, **space)
    config, num = model.config, 20_000
    images = torch.tensor(list(itertools.product(range(3), repeat=4))).view(81, config.num_patches, config.num_codes)
    kinds = torch.full((81,), view_kind)
    expected = model.log_likelihood(codes=images, view_kinds=kinds).exp() * num
    codes = model.generate(batch_size=num, view_kind=view_kind, generator=seeded()).flatten(1)
    counts = (codes * 3 ** torch.arange(3, -1, -1)).sum(1).bincount(minlength=81)

    def chi_square(expected):
        # Images of which fewer than five are expected count as one.
        rare = expected < 5
        found, expected = (torch.cat([x[~rare], x[rare].sum(0, keepdim=True)]) for x in (counts, expected))
        return ((found - expected).square() / expected.clamp(min=1)).sum()

    assert (expected > 5).sum() > 40 and chi_square(expected) < 155
    # It would notice the other tag.
    other = model.log_likelihood(codes=images, view_kinds=1 - kinds).exp() * num
    assert chi_square(other) > 155


@torch.no_grad()
def test_temperature_sharpens_each_code(make_model):
    """At S = K = 1 the warped distribution is known."""
    model = make_model(HybridForImageGeneration, noise=0.5, image_size=1, patch_size=1)
    logits = model(codes=torch.zeros(1, 1, 1, dtype=torch.long)).logits[0, 0, 0]
    codes = model.generate(batch_size=20_000, temperature=0.5, generator=seeded())
    shares = codes.flatten().bincount(minlength=5) / 20_000
    torch.testing.assert_close(shares, (logits / 0.5).softmax(-1), rtol=0, atol=0.015)


def test_the_pretraining_model_generates_the_same(make_model, tmp_path):
    model = make_model(HybridForPreTraining)
    model.save_pretrained(tmp_path)
    generator = HybridForImageGeneration.from_pretrained(tmp_path)
    codes = model.generate(batch_size=3, generator=seeded())
    assert torch.equal(generator.generate(batch_size=3, generator=seeded()), codes)


def test_the_mode_of_the_model_is_left_alone(make_model):
    model = make_model()
    for training in (True, False):
        model.train(training)
        model.generate()
        assert model.training is training
        assert all(module.training is training for module in model.modules())
    assert torch.is_grad_enabled()


def test_output_object_and_generation_config(model):
    output = model.generate(batch_size=2, return_dict_in_generate=True, generator=seeded())
    assert torch.equal(output.sequences, model.generate(batch_size=2, generator=seeded()))
    assert output.past_key_values.get_seq_length() == 4
    config = GenerationConfig(do_sample=False)
    assert torch.equal(model.generate(generation_config=config), model.generate(do_sample=False))
    config = GenerationConfig(do_sample=True, temperature=1e-4, top_k=0)
    assert torch.equal(model.generate(generation_config=config), model.generate(do_sample=False))


def test_sampling_is_the_default_also_after_saving(make_model, tmp_path):
    """With all levels, not the 50 likeliest; what the user stores in `generation_config` holds."""
    model = make_model(HybridForImageGeneration, num_levels=256, image_size=1, patch_size=1, noise=0.0)
    model.save_pretrained(tmp_path)
    for each in (model, HybridForImageGeneration.from_pretrained(tmp_path)):
        assert len(each.generate(batch_size=5_000, generator=seeded()).unique()) == 256
    model.generation_config.do_sample = False
    assert len(model.generate(batch_size=5).unique(dim=0)) == 1
    model.generation_config.do_sample = True
    model.generation_config.top_k = 1
    assert len(model.generate(batch_size=5).unique(dim=0)) == 1


REFUSED = [
    ({"num_beams": 2}, "not 'beam"),
    ({"num_beams": 2, "do_sample": False}, "not 'beam_search'"),
    ({"repetition_penalty": 1.5}, "does not support RepetitionPenaltyLogitsProcessor"),
    ({"no_repeat_ngram_size": 2}, "does not support NoRepeatNGramLogitsProcessor"),
    ({"bad_words_ids": [[1]]}, "does not support"),
    ({"logits_processor": [RepetitionPenaltyLogitsProcessor(1.5)]}, "does not support RepetitionPenalty"),
    ({"max_new_tokens": 3}, "does not support max_new_tokens=3"),
    ({"max_length": 3}, "does not support max_length=3"),
    ({"min_length": 3}, "does not support min_length=3"),
    ({"stopping_criteria": [MaxLengthCriteria(3)]}, "does not support stopping_criteria"),
    ({"input_ids": torch.zeros(1, 1)}, "does not support input_ids"),
    ({"inputs": torch.zeros(1, 1)}, "does not support inputs"),
    ({"custom_generate": "somewhere"}, "does not support custom_generate='somewhere'"),
    ({"prompt_lookup_num_tokens": 2}, "not 'assisted_generation'"),
    ({"output_scores": True}, "does not support output_scores=True"),
    ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ({"view_kind": 2}, r"view_kind=2 must lie in 0\.\.1"),
    ({"num_given_rows": 2}, "needs both pixel_values and num_given_rows"),
    ({"pixel_values": torch.zeros(1, 1, 4, 4)}, "needs both pixel_values and num_given_rows"),
    ({"pixel_values": torch.zeros(1, 1, 4, 4), "num_given_rows": 3}, "num_given_rows=3 must be a multiple of patch_si"),
    ({"pixel_values": torch.zeros(1, 1, 4, 4), "num_given_rows": 6}, "num_given_rows=6 must be a multiple"),
    ({"pixel_values": torch.zeros(1, 1, 4, 4), "num_given_rows": -2}, "num_given_rows=-2 must be a multiple"),
    ({"pixel_values": torch.zeros(1, 1, 4, 4), "num_given_rows": 2, "batch_size": 2}, "batch_size=2 is for sampling"),
    ({"codes": torch.zeros(1, 1, 4, dtype=torch.long), "num_given_rows": 2}, "needs both pixel_values and num_given"),
    ({"codes": torch.zeros(1, 1, 3, dtype=torch.long)}, r"codes has shape \(1, 1, 3\), expected"),
    ({"codes": torch.full((1, 1, 4), 9)}, r"outside 0\.\.4"),
    ({"temprature": 0.5}, "temprature"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_it_cannot_do_is_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**arguments)


def test_assistants_are_refused(model):
    with pytest.raises(ValueError, match="does not support assistant_model"):
        model.generate(assistant_model=model)


class Streamed(BaseStreamer):
    def __init__(self):
        self.codes, self.has_ended = [], False

    def put(self, value):
        assert not self.has_ended
        self.codes.append(value)

    def end(self):
        self.has_ended = True


@pytest.mark.parametrize("num_given", [0, 2, 4])
@pytest.mark.parametrize("use_cache", [True, False])
def test_patches_are_streamed_as_they_are_drawn(model, draw_images, num_given, use_cache):
    given = pixels_to_codes(draw_images(model.config, 2), model.config)[:, :num_given]
    streamer = Streamed()
    codes = model.generate(codes=given, num_return_sequences=2, streamer=streamer, use_cache=use_cache)
    assert streamer.has_ended
    assert [put.shape[1] for put in streamer.codes] == [num_given] * (num_given > 0) + [1] * (4 - num_given)
    assert torch.equal(torch.cat(streamer.codes, dim=1), codes)
    torch.manual_seed(1)
    streamed = model.generate(codes=given, streamer=Streamed(), use_cache=use_cache)
    torch.manual_seed(1)
    assert torch.equal(streamed, model.generate(codes=given, use_cache=use_cache))

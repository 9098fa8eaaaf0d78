"""Images drawn from features: those that were given, with guidance, completions, variations, the same by every way."""

import itertools
import math

import pytest
import torch
from transformers import GenerationConfig

from modeling_hybrid import HybridForImageGeneration


CONDITION = {"decoder_condition": "features"}
HEADS = ("softmax", "logistic_mixture")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(make_model, **overrides):
    # In double precision no draw lies so close to the border of two codes that rounding decides.
    return make_model(HybridForImageGeneration, noise=0.3, **CONDITION, **overrides).double()


@pytest.fixture(params=HEADS)
def model(make_model, request):
    return build(make_model, code_distribution=request.param)


@pytest.fixture
def features(model):
    return 2 * torch.randn(3, model.config.pooled_size, dtype=torch.double)


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_samples_follow_the_probabilities_given_the_features(make_model, head):
    """A chi-square test over all 81 images of a space; its 1 - 1e-6 quantile at 80 degrees of freedom is 155."""
    model = build(make_model, image_size=2, patch_size=1, num_levels=3, code_distribution=head)
    images, num = torch.tensor(list(itertools.product(range(3), repeat=4))).view(81, 4, 1), 20_000
    features = torch.randn(1, model.config.pooled_size, dtype=torch.double)
    codes = model.generate(features=features.expand(num, -1), generator=seeded()).flatten(1)
    counts = (codes * 3 ** torch.arange(3, -1, -1)).sum(1).bincount(minlength=81)

    def chi_square(features):
        expected = model.log_likelihood(codes=images, features=features).exp() * num
        rare = expected < 5
        found, expected = (torch.cat([x[~rare], x[rare].sum(0, keepdim=True)]) for x in (counts, expected))
        return ((found - expected).square() / expected.clamp(min=1)).sum()

    assert chi_square(features.expand(81, -1)) < 155
    # It would notice other features, and none.
    assert chi_square(-features.expand(81, -1)) > 155 and chi_square(None) > 155


@pytest.mark.parametrize("guidance_scale", [None, 2.5])
@pytest.mark.parametrize("overrides", [{}, {"encoder_attention": "two_pass"}, {"patch_size": 1}], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_caches_change_nothing(make_model, draw_images, head, overrides, guidance_scale):
    model = build(make_model, code_distribution=head, **overrides)
    x, features = draw_images(model.config, 4), torch.randn(4, model.config.pooled_size, dtype=torch.double)
    settings = {"features": features, "guidance_scale": guidance_scale}
    for given in ({}, {"pixel_values": x, "num_given_rows": 2}):
        samples = [
            model.generate(**given, **settings, **cache, generator=seeded())
            for cache in ({"use_cache": False}, {"cache_implementation": "dynamic"}, {"cache_implementation": "static"})
        ]
        for sample in samples[1:]:
            assert torch.equal(sample, samples[0])


@pytest.mark.parametrize("guidance_scale", [1, 3.0])
def test_a_batch_is_its_images(model, features, guidance_scale):
    """Greedily, so that no draw is shared; several returned sequences are each of their own image."""
    settings = {"do_sample": False, "guidance_scale": guidance_scale}
    batch = model.generate(features=features, **settings)
    for i in range(3):
        assert torch.equal(model.generate(features=features[i : i + 1], **settings)[0], batch[i])
    assert len(batch.unique(dim=0)) > 1
    settings = {"top_k": 1, "guidance_scale": guidance_scale}
    twice = model.generate(features=features, **settings, num_return_sequences=2)
    assert torch.equal(twice, batch.repeat_interleave(2, dim=0))


@pytest.mark.parametrize("guidance_scale", [1, 3.0])
def test_a_batch_of_mixed_conditions_is_its_images(model, features, draw_images, guidance_scale):
    """Drawn from nothing and completed; greedily, so that no draw is shared."""
    x = draw_images(model.config, 4, dtype=torch.double)
    mixed = [features[0], None, features[2], None]
    for given in ({}, {"pixel_values": x, "num_given_rows": 2}):
        settings = {"do_sample": False, "guidance_scale": guidance_scale}
        batch = model.generate(features=mixed, **given, **settings)
        for i, row in enumerate(mixed):
            own = {key: value[i : i + 1] if key == "pixel_values" else value for key, value in given.items()}
            if row is None:
                # There is nothing to follow.
                alone = model.generate(**own, do_sample=False)
            else:
                alone = model.generate(features=row[None], **own, **settings)
            assert torch.equal(alone[0], batch[i])
    settings["num_return_sequences"] = 2
    twice = model.generate(features=mixed, top_k=1, **settings | {"do_sample": True}, **given)
    assert torch.equal(twice, batch.repeat_interleave(2, dim=0))


@torch.no_grad()
def test_greedy_takes_the_likeliest_code_given_the_features(model, features):
    codes = model.generate(features=features, do_sample=False)
    assert torch.equal(model(codes=codes, features=features).logits.argmax(-1), codes)


@torch.no_grad()
@pytest.mark.parametrize("guidance_scale", [1.5, 4.0])
def test_guidance_extrapolates_from_nothing_given(model, features, guidance_scale):
    """The likeliest code under transformers' formula, each given all codes before it."""
    codes = model.generate(features=features, do_sample=False, guidance_scale=guidance_scale)
    given, without = (model(codes=codes, features=each).logits.log_softmax(-1) for each in (features, None))
    assert torch.equal((without + guidance_scale * (given - without)).argmax(-1), codes)
    assert not torch.equal(codes, model.generate(features=features, do_sample=False))


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_guided_samples_follow_the_guided_distribution(make_model, head):
    """At S = K = 1 it is known; temperature comes after guidance."""
    model = build(make_model, image_size=1, patch_size=1, code_distribution=head)
    features, codes = torch.randn(1, 16, dtype=torch.double), torch.zeros(1, 1, 1, dtype=torch.long)
    given, without = (model(codes=codes, features=each).logits[0, 0, 0].log_softmax(-1) for each in (features, None))
    for temperature in (1.0, 0.7):
        drawn = model.generate(
            features=features.expand(20_000, -1), guidance_scale=3.0, temperature=temperature, generator=seeded()
        )
        shares = drawn.flatten().bincount(minlength=5) / 20_000
        expected = ((without + 3.0 * (given - without)) / temperature).softmax(-1)
        torch.testing.assert_close(shares.double(), expected, rtol=0, atol=0.015)
    assert (expected - (given / temperature).softmax(-1)).abs().max() > 0.05


def test_guidance_of_one_is_none(model, features):
    draws = [
        model.generate(features=features, generator=seeded(), **scale)
        for scale in ({}, {"guidance_scale": 1}, {"guidance_scale": 1.0}, {"guidance_scale": None})
    ]
    for draw in draws[1:]:
        assert torch.equal(draw, draws[0])
    config = GenerationConfig(do_sample=False, guidance_scale=2.0)
    assert torch.equal(
        model.generate(features=features, generation_config=config),
        model.generate(features=features, do_sample=False, guidance_scale=2.0),
    )


@torch.no_grad()
def test_variations_are_drawn_from_the_features_of_the_image(model, draw_images):
    x = draw_images(model.config, 3, dtype=torch.double)
    features = model.encoder(x).pooler_output
    expected = model.generate(features=features, generator=seeded())
    assert torch.equal(model.generate(pixel_values=x, generator=seeded()), expected)
    # None of its pixels are given, but those that are asked for.
    assert not torch.equal(model.codes_to_pixels(expected)[:, :, :2], x.float()[:, :, :2])
    completed = model.generate(pixel_values=x, num_given_rows=2, features=features.flip(0), generator=seeded())
    torch.testing.assert_close(model.codes_to_pixels(completed)[:, :, :2].double(), x[:, :, :2])
    assert not torch.equal(completed, model.generate(pixel_values=x, num_given_rows=2, generator=seeded()))


def test_what_cannot_be_followed_is_refused(model, features, make_model):
    for scale in (0.5, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"guidance_scale=.* must be 1"):
            model.generate(features=features, guidance_scale=scale)
    with pytest.raises(ValueError, match=r"guidance_scale=2.0 must be 1 \(off\) or more, and needs features"):
        model.generate(batch_size=2, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"features has shape \(3, 16\), expected \(2, 16\)"):
        model.generate(features=features, batch_size=2)
    with pytest.raises(ValueError, match="no condition"):
        make_model(HybridForImageGeneration).generate(features=features)


# Everything that a checkpoint with a condition does. Runs here and, as text, in a process without the package.
USE = """
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForPreTraining


def outputs_of(folder, **kwargs):
    torch.manual_seed(0)
    x = torch.randint(5, (4, 1, 4, 4)) / 2 - 1
    model = AutoModelForCausalLM.from_pretrained(folder, **kwargs)
    with torch.no_grad():
        features = AutoModel.from_pretrained(folder, **kwargs)(x).pooler_output
        torch.manual_seed(1)
        drawn = model.sample_features(3)
        result = {
            "log_likelihood": model.log_likelihood(x, features=features),
            "information": model.information(x, features),
            "mixed": model.log_likelihood(x, features=[features[0], None, None, features[3]]),
            "surprise": model.nll_map(x, features=features),
            "drawn": drawn,
            "two stages": model.generate(features=drawn),
            "variations": model.generate(pixel_values=x),
            "guided": model.generate(features=features.lerp(features[:1], 0.5), guidance_scale=2.0),
            "completed": model.generate(pixel_values=x, num_given_rows=2, features=features),
        }
    trained = AutoModelForPreTraining.from_pretrained(folder, **kwargs).train()
    return result | {"loss": trained(x.view(2, 2, 1, 4, 4)).loss.detach()}
"""


def test_a_checkpoint_does_all_of_it_with_its_own_code(make_model, draw_images, run_python, tmp_path):
    model = make_model(**CONDITION)
    model.fit_feature_density(draw_images(model.config, 20), num_components=3).save_pretrained(tmp_path / "model")
    scope = {}
    exec(USE, scope)
    expected = scope["outputs_of"](tmp_path / "model")
    torch.save(expected, tmp_path / "expected.pt")
    check = f"""
expected = torch.load({str(tmp_path / "expected.pt")!r})
for name, value in outputs_of({str(tmp_path / "model")!r}, trust_remote_code=True).items():
    torch.testing.assert_close(value, expected[name], msg=name)
print("all agree")
"""
    assert "all agree" in run_python(USE + check, package=False)
    assert expected["loss"].isfinite() and expected["information"].abs().min() > 0

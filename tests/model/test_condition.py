"""A decoder that is told features: exact given any of them, the very model without, and nothing else moves."""

import math

import pytest
import torch
from test_likelihood import CAUSAL, SPACES, all_codes
from transformers import DynamicCache, StaticCache

from modeling_hybrid import HybridForImageGeneration, HybridForPreTraining, HybridModel


CONDITION = {"decoder_condition": "features"}
HEADS = ("softmax", "logistic_mixture")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=HEADS)
def model(make_model, request):
    return make_model(HybridForImageGeneration, noise=0.3, code_distribution=request.param, **CONDITION).double()


def draw_features(config, num=3):
    return torch.randn(num, config.pooled_size, dtype=torch.double)


@pytest.mark.parametrize("space", [name for name in SPACES if SPACES[name].get("num_decoder_layers") != 0])
@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one_given_any_features(make_model, space):
    model = make_model(HybridForImageGeneration, noise=0.5, **CONDITION, **SPACES[space]).double()
    codes = all_codes(model.config)
    # Of no image, of one, far from any.
    of_an_image = model.encoder(codes=codes[-1:]).pooler_output
    told = [None, of_an_image, *(scale * draw_features(model.config, 1) for scale in (1, 100))]
    log_likelihoods = [
        model.log_likelihood(codes=codes, features=None if row is None else row.expand(len(codes), -1)) for row in told
    ]
    for log_likelihood in log_likelihoods:
        assert log_likelihood.exp().sum().item() == pytest.approx(1, abs=1e-6)
    # What is told matters: no two of these are one distribution.
    for i, one in enumerate(log_likelihoods):
        for other in log_likelihoods[:i]:
            assert (one - other).abs().max() > 0.05


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_given_features_no_logit_sees_its_own_code_or_a_later_one(make_model, name):
    model = make_model(HybridForImageGeneration, noise=0.3, **CONDITION, **CAUSAL[name]).double()
    config = model.config
    codes = torch.randint(config.num_levels, (1, config.num_patches, config.num_codes))
    features = model.encoder(codes=codes).pooler_output
    changed = codes.repeat(config.num_dims, 1, 1).flatten(1)
    own = torch.arange(config.num_dims)
    changed[own, own] = (changed[own, own] + 1) % config.num_levels
    changed = changed.view(-1, *codes.shape[1:])
    logits = model(codes=codes, features=features).logits.flatten(1, 2)
    others = model(codes=changed, features=features.expand(len(changed), -1)).logits.flatten(1, 2)
    difference = (others - logits).abs().amax(-1)
    later = torch.ones_like(difference).triu(1) == 1
    assert torch.equal(difference > 1e-6, later) and torch.equal(difference < 1e-12, ~later)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_nothing_given_is_the_model_without_a_condition(make_model, draw_images, head, tmp_path):
    """Bit for bit, at equal weights; so is a checkpoint of such a model that is given a condition, until it learns."""
    make_model(HybridForPreTraining, code_distribution=head).save_pretrained(tmp_path)
    plain = HybridForPreTraining.from_pretrained(tmp_path).eval()
    x = draw_images(plain.config, 4)
    for cls in (HybridForImageGeneration, HybridForPreTraining):
        model = cls.from_pretrained(tmp_path, **CONDITION).eval()
        assert torch.equal(model.log_likelihood(x), plain.log_likelihood(x))
        drawn = (each.generate(batch_size=3, generator=seeded()) for each in (model, plain))
        assert torch.equal(*drawn)
        # Before it has learnt from any, features say nothing.
        features = model.encoder(x).pooler_output
        assert torch.equal(model.information(x, features), torch.zeros(4))
    views = x.view(2, 2, *x.shape[1:])
    for name in ("loss", "generative_loss", "contrastive_loss", "nll", "pooler_output"):
        assert torch.equal(model(views)[name], plain(views)[name]), name


def test_a_decoder_that_was_told_by_an_added_vector_is_refused(model, tmp_path):
    """It would pass over what it is told, and say nothing of it."""
    kept = {name: values for name, values in model.state_dict().items() if ".modulation." not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match=r"told its condition by a vector that is added .* train it anew"):
        HybridForImageGeneration.from_pretrained(tmp_path)
    assert HybridModel.from_pretrained(tmp_path).config.decoder_condition == "features"


@torch.no_grad()
def test_the_encoder_knows_nothing_of_it(model, draw_images, tmp_path):
    x, config = draw_images(model.config, dtype=torch.double), model.config
    features = draw_features(config)
    states = [model(x, features=each, output_hidden_states=True).hidden_states for each in (None, features, -features)]
    num = config.num_encoder_layers + 1
    for told in states[1:]:
        assert all(torch.equal(one, other) for one, other in zip(states[0][:num], told[:num], strict=True))
        assert not torch.equal(states[0][-1], told[-1])
    model.save_pretrained(tmp_path)
    encoder = HybridModel.from_pretrained(tmp_path)
    torch.testing.assert_close(encoder(x).pooler_output, model.encoder(x).pooler_output, rtol=1e-9, atol=1e-9)
    assert not any("condition" in name for name, _ in encoder.named_parameters())


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
@torch.no_grad()
def test_step_by_step_equals_the_full_pass(model, cache):
    config = model.config
    codes = torch.randint(config.num_levels, (3, config.num_patches, config.num_codes))
    kinds = torch.tensor([0, 1, 0])
    condition = model.told(draw_features(config), 3)
    full = model.decoder_states(codes, kinds, condition=condition)
    past = DynamicCache(config=config) if cache is DynamicCache else StaticCache(config, config.num_patches + 1)
    steps = [model.decoder_states(codes[:, :0], kinds, past, condition)]
    steps += [model.decoder_states(codes[:, s : s + 1], kinds, past, condition) for s in range(config.num_patches)]
    torch.testing.assert_close(torch.cat(steps, dim=1), full)
    assert (full - model.decoder_states(codes, kinds)).abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_each_image_is_told_its_own_features(model, draw_images):
    """A batch is its images; more images than are scored at a time keep their features."""
    x = draw_images(model.config, 300, dtype=torch.double)
    features = draw_features(model.config, 300)
    found = model.log_likelihood(x, features=features)
    for i in (0, 1, 255, 256, 299):
        torch.testing.assert_close(model.log_likelihood(x[i : i + 1], features=features[i : i + 1])[0], found[i])
    assert (model.log_likelihood(x, features=features.flip(0)) - found).abs().max() > 0.1


@torch.no_grad()
def test_some_images_are_told_features_and_others_nothing(model, draw_images):
    """A batch of mixed conditions is its images."""
    x, features = draw_images(model.config, 4, dtype=torch.double), draw_features(model.config, 4)
    mixed = [features[0], None, features[2].float().double(), None]
    singles = [
        model.log_likelihood(x[i : i + 1], features=None if row is None else row[None]) for i, row in enumerate(mixed)
    ]
    expected = torch.cat(singles)
    torch.testing.assert_close(model.log_likelihood(x, features=mixed), expected)
    torch.testing.assert_close(-model(x, features=mixed).nll, expected)
    assert ((expected - model.log_likelihood(x)).abs() > 1e-3).tolist() == [True, False, True, False]
    bits = model.information(x, mixed)
    torch.testing.assert_close(bits[1::2], torch.zeros(2, dtype=torch.double))
    torch.testing.assert_close(model.log_likelihood(x, features=[None] * 4), model.log_likelihood(x))
    torch.testing.assert_close(model.information(x, list(features)), model.information(x, features))
    # Rows of numpy, and of another precision.
    torch.testing.assert_close(
        model.information(x, [row if row is None else row.numpy() for row in mixed]), model.information(x, mixed)
    )


@torch.no_grad()
def test_information_is_the_difference_of_two_likelihoods(model, draw_images):
    x = draw_images(model.config, dtype=torch.double)
    features = draw_features(model.config)
    expected = (model.log_likelihood(x, features=features) - model.log_likelihood(x)) / math.log(2)
    torch.testing.assert_close(model.information(x, features), expected)
    bits = [model.bits_per_dim(x, features=each) for each in (None, features)]
    torch.testing.assert_close((bits[0] - bits[1]) * model.config.num_dims, expected)
    found = model.information_map(x, features)
    assert found.shape == (3, 4)
    torch.testing.assert_close(found.sum(1), expected)
    maps = [model(x, features=each).nll_map for each in (None, features)]
    torch.testing.assert_close(found, (maps[0] - maps[1]) / math.log(2))


@torch.no_grad()
def test_features_that_do_not_fit_are_refused(make_model, draw_images):
    model = make_model(**CONDITION)
    x = draw_images(model.config)
    good = torch.randn(3, 16)
    scores = [
        lambda features: model.log_likelihood(x, features=features),
        lambda features: model.bits_per_dim(x, features=features),
        lambda features: model.information(x, features),
        lambda features: HybridForImageGeneration.forward(model, x, features=features),
        lambda features: model.generate(codes=torch.zeros(3, 1, 4, dtype=torch.long), features=features),
    ]
    for score in scores:
        score(good)
        for features in (good[:, :5], good[:2], good[0]):
            with pytest.raises(ValueError, match=r"features has shape .*, expected \(3, 16\)"):
                score(features)
        for value in (math.nan, math.inf):
            with pytest.raises(ValueError, match="infinite or not a number"):
                score(torch.where(torch.arange(16) == 3, value, good))
        for features, message in (
            ([good[0], None, good[2, :5]], r"features\[2\] has shape \(5,\), expected \(16,\)"),
            ([None, good[0]], r"features has shape \(2, 16\), expected \(3, 16\)"),
            ([], r"features has shape .*, expected \(3, 16\)"),
            ([None, None, good[0] / 0], "infinite or not a number"),
        ):
            with pytest.raises(ValueError, match=message):
                score(features)
    plain = make_model()
    for use in (plain.log_likelihood, plain.bits_per_dim, plain.information):
        with pytest.raises(ValueError, match="this model has no condition"):
            use(x, features=good)
    with pytest.raises(ValueError, match="this model has no condition"):
        plain.generate(features=good)
    with pytest.raises(ValueError, match="Pass features"):
        model.information(x)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"condition_share": 0}, r"condition_share=0 must lie in \(0, 1\]"),
        ({"condition_share": 1.5}, "condition_share=1.5"),
        ({"condition_noise": -1}, "condition_noise=-1 must be 0"),
        ({**CONDITION, "generative_weight": 0}, "conditions the likelihood, which is off"),
        ({**CONDITION, "num_decoder_layers": 0}, "told to the layers of the decoder, but num_decoder_layers=0"),
        ({"decoder_condition": "labels"}, "decoder_condition"),
    ],
)
def test_configurations_without_a_meaning_are_refused(tiny_config, fields, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**fields)

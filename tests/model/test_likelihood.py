"""The likelihood is exact: it sums to one, no logit sees its own code or a later one, and the units are right."""

import itertools
import math

import pytest
import torch
from transformers import DynamicCache, StaticCache

from modeling_hybrid import HybridForImageGeneration, HybridForPreTraining, depth_head, logistic_mixture
from modeling_hybrid.likelihood import code_nll
from modeling_hybrid.sampling import Draw


MIXTURE = {"code_distribution": "logistic_mixture", "num_mixture_components": 3}

# All images of a tiny space, cut in every way: S patches of K codes with L levels.
SPACES = {
    "S=4 K=1 L=3": {"image_size": 2, "patch_size": 1, "num_levels": 3},
    "S=1 K=4 L=3": {"image_size": 2, "patch_size": 2, "num_levels": 3},
    "S=4 K=3 L=2": {"image_size": 2, "patch_size": 1, "num_levels": 2, "num_channels": 3},
    "S=4 K=1 two passes": {"image_size": 2, "patch_size": 1, "num_levels": 3, "encoder_attention": "two_pass"},
    "no decoder, no depth layers": {
        "image_size": 2,
        "patch_size": 1,
        "num_channels": 3,
        "num_levels": 2,
        "num_decoder_layers": 0,
        "num_depth_layers": 0,
    },
    "mixture, S=4 K=1 L=3": {"image_size": 2, "patch_size": 1, "num_levels": 3, **MIXTURE},
    "mixture, S=1 K=4 L=3": {"image_size": 2, "patch_size": 2, "num_levels": 3, **MIXTURE},
    "mixture, S=4 K=3 L=2": {"image_size": 2, "patch_size": 1, "num_levels": 2, "num_channels": 3, **MIXTURE},
    "mixture, S=1 K=12 L=2": {"image_size": 2, "patch_size": 2, "num_levels": 2, "num_channels": 3, **MIXTURE},
    "mixture, a pixel of 16 levels": {
        "image_size": 1,
        "patch_size": 1,
        "num_levels": 16,
        "num_channels": 3,
        "pooling_grid": 1,
        **MIXTURE,
    },
}


def all_codes(config):
    """Every image there is, (L ** (S * K), S, K)."""
    codes = list(itertools.product(range(config.num_levels), repeat=config.num_dims))
    return torch.tensor(codes).view(-1, config.num_patches, config.num_codes)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("view_kind", [0, 1])
@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one(make_model, space, view_kind):
    model = make_model(HybridForImageGeneration, noise=0.5, **SPACES[space]).double()
    codes = all_codes(model.config)
    log_likelihood = model.log_likelihood(codes=codes, view_kinds=torch.full((len(codes),), view_kind))
    assert log_likelihood.exp().sum().item() == pytest.approx(1, abs=1e-6)
    # Not because all images were equally likely.
    assert log_likelihood.std() > 0.1


@torch.no_grad()
def test_the_tag_conditions_the_likelihood(make_model):
    model = make_model(HybridForImageGeneration, **SPACES["S=4 K=1 L=3"])
    codes = all_codes(model.config)
    clean, augmented = (model.log_likelihood(codes=codes, view_kinds=torch.full((81,), kind)) for kind in (0, 1))
    torch.testing.assert_close(model.log_likelihood(codes=codes), clean)
    assert (clean - augmented).abs().max() > 0.05


CAUSAL = {
    "grey 2x2 patches": {},
    "pixels": {"patch_size": 1},
    "rgb": {"num_channels": 3, "num_levels": 3},
    "two passes": {"encoder_attention": "two_pass"},
    "eager": {"attn_implementation": "eager"},
    "mixture": MIXTURE,
    "mixture, pixels": {"patch_size": 1, **MIXTURE},
    "mixture, rgb": {"num_channels": 3, "num_levels": 3, **MIXTURE},
}


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_no_logit_sees_its_own_code_or_a_later_one(make_model, name):
    model = make_model(HybridForImageGeneration, noise=0.3, **CAUSAL[name]).double()
    config = model.config
    codes = torch.randint(config.num_levels, (1, config.num_patches, config.num_codes))
    # One changed copy per code (s, k), all in one batch.
    changed = codes.repeat(config.num_dims, 1, 1).flatten(1)
    own = torch.arange(config.num_dims)
    changed[own, own] = (changed[own, own] + 1) % config.num_levels
    logits = model(codes=codes).logits.flatten(1, 2)
    difference = (model(codes=changed.view(-1, *codes.shape[1:])).logits.flatten(1, 2) - logits).abs().amax(-1)
    # Every code but the last is seen by every later patch, and by the codes after it in its own patch.
    later = torch.ones_like(difference).triu(1) == 1
    assert torch.equal(difference > 1e-6, later) and torch.equal(difference < 1e-12, ~later)


@pytest.mark.parametrize("cache", ["dynamic", "static", "dynamic without config"])
@pytest.mark.parametrize("encoder_attention", ["causal", "two_pass"])
@torch.no_grad()
def test_step_by_step_equals_the_full_pass(make_model, cache, encoder_attention):
    """Also in unequal steps: the tag with two patches first, then one, then the last."""
    model = make_model(HybridForImageGeneration, noise=0.3, encoder_attention=encoder_attention).double()
    config = model.config
    codes = torch.randint(config.num_levels, (3, config.num_patches, config.num_codes))
    kinds = torch.tensor([0, 1, 0])
    full = model.decoder_states(codes, kinds)
    for sizes in ([0, 1, 1, 1, 1], [2, 1, 1]):
        past = {
            "dynamic": lambda: DynamicCache(config=config),
            "static": lambda: StaticCache(config, max_cache_len=config.num_patches + 1),
            "dynamic without config": DynamicCache,
        }[cache]()
        states, start = [], 0
        for size in sizes:
            states.append(model.decoder_states(codes[:, start : start + size], kinds, past))
            start += size
        torch.testing.assert_close(torch.cat(states, dim=1), full)
        logits = model.depth_head(torch.cat(states, dim=1)[:, :-1], codes)
        torch.testing.assert_close(logits, model(codes=codes, view_kinds=kinds).logits)


@torch.no_grad()
def test_no_state_of_the_cache_sees_a_later_code(make_model):
    model = make_model(HybridForImageGeneration, noise=0.3).double()
    config = model.config
    codes = torch.randint(config.num_levels, (1, config.num_patches, config.num_codes))
    kinds = torch.zeros(1, dtype=torch.long)
    for s in range(config.num_patches):
        for k in range(config.num_codes):
            changed = codes.clone()
            changed[0, s, k] = (changed[0, s, k] + 1) % config.num_levels
            states = []
            for each in (codes, changed):
                past = StaticCache(config, max_cache_len=config.num_patches + 1)
                steps = [model.decoder_states(each[:, :0], kinds, past)]
                steps += [model.decoder_states(each[:, i : i + 1], kinds, past) for i in range(config.num_patches)]
                states.append(torch.cat(steps, dim=1))
            difference = (states[0] - states[1]).abs().amax(-1)[0]
            assert (difference[: s + 1] < 1e-12).all()
            assert (difference[s + 1 :] > 1e-6).all()


class Watched(Draw):
    """Keeps the logits that it draws from."""

    def __init__(self):
        super().__init__(warp=lambda logits: logits)
        self.seen = []

    def __call__(self, logits):
        self.seen.append(logits.double())
        return super().__call__(logits)


@pytest.mark.parametrize("head", [{}, MIXTURE], ids=["softmax", "mixture"])
@pytest.mark.parametrize("cut", [{}, {"patch_size": 1}, {"num_channels": 3}], ids=str)
@torch.no_grad()
def test_a_head_draws_from_the_distribution_it_scores(make_model, head, cut):
    """The logits that `sample` hands to `draw` are those of `forward`, for the codes drawn, wherever the patch is."""
    model = make_model(HybridForImageGeneration, noise=0.5, **cut, **head).double()
    config = model.config
    states = torch.randn(6, config.num_patches, config.hidden_size, dtype=torch.double)
    codes = torch.randint(config.num_levels, (6, config.num_patches, config.num_codes))
    for patch in range(config.num_patches):
        draw = Watched()
        codes[:, patch] = model.depth_head.sample(states[:, patch], codes[:, :patch], draw)
        logits = model.depth_head(states, codes)[:, patch]
        torch.testing.assert_close(torch.stack(draw.seen, dim=1).log_softmax(-1), logits.log_softmax(-1))


@pytest.mark.parametrize("head", [{}, MIXTURE], ids=["softmax", "mixture"])
def test_nats_are_those_of_the_logits(make_model, head, monkeypatch):
    """Also where they are computed some states at a time; values and gradients."""
    for module in (depth_head, logistic_mixture):
        monkeypatch.setattr(module, "CHUNK_SIZE", 100)
    model = make_model(HybridForImageGeneration, noise=0.5, num_channels=3, **head).double()
    states = torch.randn(3, 4, model.config.hidden_size, dtype=torch.double, requires_grad=True)
    codes = torch.randint(model.config.num_levels, (3, 4, model.config.num_codes))
    parameters = [states, *model.depth_head.parameters()]
    found = model.depth_head.nll(states, codes)
    expected = code_nll(model.depth_head(states, codes), codes)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradients = (torch.autograd.grad((weights * each).sum(), parameters) for each in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("num_levels", [2, 5, 17, 256])
@torch.no_grad()
def test_uniform_logits_cost_log2_of_the_levels(make_model, draw_images, num_levels):
    model = make_model(HybridForImageGeneration, num_levels=num_levels).double()
    model.depth_head.output.weight.zero_()
    model.depth_head.output.bias.fill_(0.7)
    x = draw_images(model.config, dtype=torch.double)
    expected = torch.full((3,), math.log2(num_levels), dtype=torch.double)
    torch.testing.assert_close(model.bits_per_dim(x), expected, rtol=1e-12, atol=0)
    nats = expected * math.log(2) * model.config.num_dims
    torch.testing.assert_close(model.log_likelihood(x), -nats, rtol=1e-12, atol=0)


def test_fresh_weights_start_close_to_uniform(tiny_config, draw_images):
    config = tiny_config(num_levels=17)
    bits = HybridForImageGeneration(config).bits_per_dim(draw_images(config, 16))
    assert bits.mean().item() == pytest.approx(math.log2(17), abs=0.3)


@torch.no_grad()
def test_scores_agree_with_each_other(make_model, draw_images):
    model = make_model(HybridForPreTraining)
    x = draw_images(model.config, 4)
    output = HybridForImageGeneration.forward(model, x)
    assert output.logits.shape == (4, 4, 4, 5)
    log_p = output.logits.log_softmax(-1).gather(-1, _codes(x, model.config)[..., None]).sum((1, 2, 3))
    torch.testing.assert_close(model.log_likelihood(x), log_p)
    torch.testing.assert_close(output.nll, -log_p)
    torch.testing.assert_close(output.loss, -log_p.mean() / 16)
    torch.testing.assert_close(model.bits_per_dim(x), -log_p / math.log(2) / 16)
    torch.testing.assert_close(model(x).nll[0], output.nll)


def _codes(pixel_values, config):
    """An independent, slow pixels -> codes."""
    p, side = config.patch_size, config.image_size // config.patch_size
    codes = torch.empty(len(pixel_values), config.num_patches, config.num_codes, dtype=torch.long)
    for b, row, column, y, x, c in itertools.product(
        range(len(pixel_values)), range(side), range(side), range(p), range(p), range(config.num_channels)
    ):
        value = pixel_values[b, c, row * p + y, column * p + x].item()
        level = round((value + 1) / 2 * (config.num_levels - 1))
        codes[b, row * side + column, (y * p + x) * config.num_channels + c] = level
    return codes


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_a_model_that_learns_no_likelihood_has_none(attention, make_model, draw_images):
    model = make_model(encoder_attention=attention, generative_weight=0)
    for score in (model.log_likelihood, model.bits_per_dim):
        with pytest.raises(ValueError, match=f"no likelihood: generative_weight=0, encoder_attention='{attention}'"):
            score(draw_images(model.config))
    with pytest.raises(ValueError, match="no likelihood"):
        model.generate()


@torch.no_grad()
def test_the_map_says_where_the_nats_are(make_model, draw_images):
    model = make_model(HybridForImageGeneration)
    x = draw_images(model.config)
    output = model(x)
    assert output.nll_map.shape == (3, 4)
    torch.testing.assert_close(output.nll_map.sum(1), -model.log_likelihood(x))
    # A patch is surprised by itself and by those before it, never by a later one.
    other = x.clone()
    other[:, :, 2:, 2:] = -other[:, :, 2:, 2:]
    changed = (model(other).nll_map - output.nll_map).abs() > 1e-5
    assert not changed[:, :3].any() and changed[:, 3].any()

"""Replaced patches: off they change nothing, draws are the depth head's, and no gradient goes through them."""

import copy

import pytest
import torch

from modeling_hybrid import HybridForPreTraining
from modeling_hybrid.replaced_patches import ReplacedPatches


TWO_PASS = {"encoder_attention": "two_pass"}


@pytest.fixture
def views(draw_images, tiny_config):
    return draw_images(tiny_config(), 12).view(2, 6, 1, 4, 4)


def trained(make_model, **overrides):
    """In training mode, its random numbers from a seed."""
    model = make_model(**TWO_PASS, **overrides).train()
    torch.manual_seed(3)
    return model


def with_the_weights_of(plain, make_model, **overrides) -> HybridForPreTraining:
    model = make_model(**TWO_PASS, **overrides).train()
    model.load_state_dict(plain.state_dict(), strict=False)
    return model


def test_it_adds_its_loss_in_training_and_nothing_else(make_model, views):
    plain = make_model(**TWO_PASS).train()
    assert plain.replaced_patches is None and not any("replaced" in key for key in plain.state_dict())
    model = with_the_weights_of(plain, make_model, replaced_weight=0.5)
    expected, found = plain(views), model(views)
    told = found.telemetry["replaced_loss"]
    torch.testing.assert_close(found.generative_loss, expected.generative_loss + 0.5 * told)
    torch.testing.assert_close(found.loss, expected.loss + 0.5 * told)
    # No likelihood of a corrupted image.
    assert torch.equal(found.nll, expected.nll) and torch.equal(found.contrastive_loss, expected.contrastive_loss)
    assert 0 < found.telemetry["replaced_share"] < 0.5 and told > 0
    scored = model.eval()(views)
    assert torch.equal(scored.loss, plain.eval()(views).loss) and "replaced_loss" not in scored.telemetry


def test_draws_are_those_of_the_depth_head_in_the_share_that_is_asked_for(make_model):
    model = make_model(**TWO_PASS, replaced_weight=1.0).double()
    codes = torch.zeros(4000, 4, 4, dtype=torch.long)
    state = torch.randn(16, dtype=torch.float64)
    states = state.expand(4000, 4, 16)
    corrupted = model.replaced_patches.corrupt(model.depth_head, states, codes)
    probability = model.depth_head(states[:1], codes[:1])[0, 0].softmax(-1)[:, 0].prod().item()
    # A patch stays zero where it is not drawn, and where the draw says so.
    share = (corrupted != codes).any(-1).double().mean().item()
    assert share == pytest.approx(0.15 * (1 - probability), abs=0.01)
    assert corrupted.min() >= 0 and corrupted.max() < 5


def test_the_same_random_state_repeats_the_draws(make_model, views):
    model = trained(make_model, replaced_weight=1.0)
    one = model(views).loss
    other = model(views).loss
    torch.manual_seed(3)
    assert torch.equal(model(views).loss, one) and not torch.equal(one, other)


def test_no_gradient_goes_through_the_draws(make_model, views):
    """Of the detector's loss alone: none reaches decoder or depth head, some the encoder and the detector."""
    model = trained(make_model, replaced_weight=1.0)
    plain = copy.deepcopy(model)
    plain.replaced_patches = None
    gradients = []
    for each in (model, plain):
        each(views).generative_loss.backward()
        gradients.append({name: parameter.grad for name, parameter in each.named_parameters()})
    ours, theirs = gradients
    for name, gradient in theirs.items():
        if name.startswith(("decoder.", "depth_head.")):
            torch.testing.assert_close(ours[name], gradient, msg=name)
    assert not torch.allclose(
        ours["encoder.embeddings.patch_projection.weight"], theirs["encoder.embeddings.patch_projection.weight"]
    )
    assert ours["replaced_patches.head.weight"].abs().sum() > 0


def test_a_checkpoint_serves_a_model_without(make_model, views, tmp_path):
    model = make_model(**TWO_PASS, replaced_weight=1.0).eval()
    model.save_pretrained(tmp_path)
    restored, told = HybridForPreTraining.from_pretrained(tmp_path, replaced_weight=0.0, output_loading_info=True)
    assert not told["unexpected_keys"] and not told["missing_keys"]
    torch.testing.assert_close(restored.eval()(views).loss, model(views).loss)


def test_what_is_replaced_can_be_told(make_model):
    """Patches of zeros, replaced by others: a handful of steps finds them all."""
    torch.manual_seed(0)
    detector = ReplacedPatches(make_model(**TWO_PASS, replaced_weight=1.0).config)
    is_replaced = torch.rand(8, 4) < 0.3
    states = torch.randn(16) * is_replaced[..., None] + torch.randn(16)
    optimizer = torch.optim.Adam(detector.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        loss, telemetry = detector(states, is_replaced)
        loss.backward()
        optimizer.step()
    assert telemetry["replaced_accuracy"] == 1 and loss < 0.2


@pytest.mark.parametrize(
    "overrides",
    [
        {"replaced_weight": -1.0, **TWO_PASS},
        {"replaced_weight": 1.0},
        {"replaced_weight": 1.0, "code_distribution": "logistic_mixture", **TWO_PASS},
        {"replaced_weight": 1.0, "generative_weight": 0.0, **TWO_PASS},
    ],
)
def test_what_cannot_be_is_told(tiny_config, overrides):
    with pytest.raises(Exception, match=f"replaced_weight={overrides['replaced_weight']} (must be 0|needs a softmax)"):
        tiny_config(**overrides)

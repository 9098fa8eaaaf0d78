"""The likelihood learns from features of another view of an image: of which, how often, and with what gradient."""

import pytest
import torch
from other_processes import run_group

from modeling_hybrid import HybridForPreTraining


ENCODERS = {
    "causal": {},
    "attention off, contextual": {"pooling": "contextual"},
    "two passes": {"encoder_attention": "two_pass"},
    "mixture": {"code_distribution": "logistic_mixture"},
    "without contrast": {"contrastive_weight": 0},
}


def build(make_model, **overrides):
    return make_model(decoder_condition="features", **{"condition_share": 1, **overrides}).double()


@pytest.fixture
def views(draw_images, tiny_config):
    return draw_images(tiny_config(), 6).view(2, 3, 1, 4, 4).double()


KINDS = torch.tensor([0, 1])


def gradients(model, loss) -> dict[str, torch.Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    pairs = zip(model.named_parameters(), found, strict=True)
    return {name: gradient for (name, _), gradient in pairs if gradient is not None}


def told_nll(model, views, features) -> torch.Tensor:
    """Nats of views (V, B, ...) given features (V, B, P), one view at a time."""
    return torch.stack(
        [
            -model.log_likelihood(view, view_kinds=kind.expand(len(view)), features=rows)
            for view, kind, rows in zip(views, KINDS[: len(views)], features, strict=True)
        ]
    )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_decoder_is_told_the_other_view(make_model, views, encoder):
    model = build(make_model, **ENCODERS[encoder]).train()
    output = model(views, KINDS)
    torch.testing.assert_close(output.nll, told_nll(model, views, output.pooler_output.flip(0)).detach())
    # Outside of training it is told nothing.
    nothing = model.eval()(views, KINDS).nll
    torch.testing.assert_close(nothing, told_nll(model, views, (None, None)).detach())
    assert (nothing - output.nll).abs().min() > 1e-3


def test_one_of_several_other_views_and_never_its_own(make_model, draw_images):
    model = build(make_model).train()
    views, kinds = draw_images(model.config, 12, torch.double).view(3, 4, 1, 4, 4), torch.tensor([0, 1, 1])
    seen = set()
    for _ in range(12):
        output = model(views, kinds)
        for v in range(3):
            tags = kinds[v].expand(4)
            under = torch.stack([-model.log_likelihood(views[v], None, tags, rows) for rows in output.pooler_output])
            others = ((under - output.nll[v]).abs() < 1e-9).nonzero()[:, 0]
            assert len(others) == 4
            seen |= {(v, other) for other in others.tolist()}
    assert seen == {(v, other) for v in range(3) for other in range(3) if v != other}


@pytest.mark.parametrize("share", [1, 2 / 3])
def test_with_a_part_of_the_images_scored(make_model, views, share, monkeypatch):
    """The features of the view that takes no part in the likelihood are told, each row those of its image."""
    model = build(make_model, num_generative_views=1, generative_share=share).train()
    rows = torch.tensor([0, 2]) if share < 1 else torch.arange(3)
    monkeypatch.setattr(HybridForPreTraining, "_scored_rows", lambda *_: rows[None])
    output = model(views, KINDS)
    expected = told_nll(model, views[:1], output.pooler_output[1:])
    torch.testing.assert_close(output.nll, expected[:, rows].detach())


def test_about_the_share_of_images_is_told(make_model, draw_images):
    model = build(make_model, condition_share=0.25).train()
    views = draw_images(model.config, 800, torch.double).view(2, 400, 1, 4, 4)
    with torch.no_grad():
        is_told = (model(views, KINDS).nll - told_nll(model, views, (None, None))).abs() > 1e-6
    assert 130 < is_told.sum() < 270 and is_told.any(dim=1).all()


def test_noise_in_training_alone(make_model, views):
    model = build(make_model, condition_noise=0.5)
    features = torch.randn(3, model.config.pooled_size, dtype=torch.double)
    told = [model.condition(features) for _ in range(2)]
    assert torch.equal(*told)
    noise = torch.stack([model.train().condition(features) for _ in range(4000)]) - told[0]
    expected = 0.25 * model.condition.projection.weight.square().sum(1)
    torch.testing.assert_close(noise.var(dim=(0, 1)), expected, rtol=0.1, atol=0)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_its_gradient_reaches_the_encoder_only_if_asked(make_model, views, encoder):
    model = build(make_model, **ENCODERS[encoder]).train()
    loss = model(views, KINDS).generative_loss
    found = gradients(model, loss)
    # The gradient with the features as numbers.
    fixed = model(views, KINDS).pooler_output.detach().flip(0)
    expected = gradients(model, told_nll(model, views, fixed).mean() / model.config.num_dims)
    assert found.keys() - {"condition.nothing"} == expected.keys()
    assert not any(name.startswith("encoder.pooler") for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    assert found["condition.projection.weight"].abs().max() > 1e-6

    asked = build(make_model, condition_gradient=True, **ENCODERS[encoder]).train()
    asked.load_state_dict(model.state_dict())
    assert torch.equal(asked(views, KINDS).generative_loss, loss)
    reached = gradients(asked, asked(views, KINDS).generative_loss)
    moved = [name for name in reached if name not in found or not torch.allclose(reached[name], found[name])]
    assert any(name.startswith("encoder.pooler") for name in moved)
    assert moved and all(name.startswith("encoder.") for name in moved)


@pytest.mark.parametrize(("attention", "passes"), [("causal", 1), ("two_pass", 2)])
def test_it_costs_no_pass_of_the_encoder(make_model, views, attention, passes):
    model = build(make_model, encoder_attention=attention).train()
    calls = []
    model.encoder.stack.register_forward_pre_hook(lambda *_: calls.append(1))
    model(views, KINDS)
    assert len(calls) == passes


def test_every_parameter_has_a_gradient_whatever_is_drawn(make_model, views):
    """So that processes which draw differently can average them."""
    for share in (1e-9, 1):
        found = gradients(model := build(make_model, condition_share=share).train(), model(views, KINDS).loss)
        assert {"condition.projection.weight", "condition.projection.bias", "condition.nothing"} <= found.keys()


def test_what_cannot_learn_so_is_refused(make_model, views):
    with pytest.raises(ValueError, match="pixel_values holds one view"):
        build(make_model, contrastive_weight=0).train()(views[:1])
    assert build(make_model)(views[:1]).generative_loss.isfinite()
    with pytest.raises(ValueError, match="set decoder_condition='none'"):
        build(make_model, objective={"name": "simctg"})


def one_of_many(rank: int, num_processes: int, config, weights, views, path) -> None:
    """A step of every process on its share of the images, as DDP averages it."""
    model = HybridForPreTraining(config).double().train()
    model.load_state_dict(weights)
    size = views.shape[1] // num_processes
    loss = model(views[:, rank * size : (rank + 1) * size], KINDS).loss
    loss.backward()
    found = {name: parameter.grad / num_processes for name, parameter in model.named_parameters()}
    for value in (loss := loss.detach() / num_processes, *found.values()):
        torch.distributed.all_reduce(value)
    if rank == 0:
        torch.save((loss, found), path)


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("gradient", [False, True])
def test_many_processes_equal_one(make_model, draw_images, num_processes, gradient, tmp_path):
    """With two views, all of them told, nothing is drawn: the loss and every gradient."""
    model = build(make_model, condition_gradient=gradient).train()
    views = draw_images(model.config, 16, torch.double).view(2, 8, 1, 4, 4)
    loss = model(views, KINDS).loss
    loss.backward()
    run_group(
        one_of_many,
        num_processes,
        tmp_path,
        num_processes,
        model.config,
        model.state_dict(),
        views,
        tmp_path / "found.pt",
    )
    found_loss, found = torch.load(tmp_path / "found.pt")
    torch.testing.assert_close(found_loss, loss.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)
    assert found["condition.projection.weight"].abs().max() > 1e-6

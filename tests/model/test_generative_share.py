"""A part is scored in training: in the mean over the draws of images, the loss and gradient of all of them."""

import itertools

import pytest
import torch

from modeling_hybrid import HybridForPreTraining


ENCODERS = {
    "causal": {},
    "contextual": {"pooling": "contextual"},
    "two passes": {"encoder_attention": "two_pass"},
    "mixture": {"code_distribution": "logistic_mixture"},
}


@pytest.fixture
def views(draw_images, tiny_config):
    return draw_images(tiny_config(), 6).view(2, 3, 1, 4, 4)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(model.named_parameters(), found, strict=True)
    }


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_mean_over_all_draws_is_the_whole(make_model, views, encoder, monkeypatch):
    model = make_model(generative_share=1 / 3, **ENCODERS[encoder]).double()
    kinds = torch.tensor([0, 1])
    whole = model.eval()(views, kinds)
    expected = gradients(model, whole.loss)
    model.train()
    draws = list(itertools.product(range(3), repeat=2))  # one of three images of each view
    sums, losses = {}, []
    for drawn in draws:
        rows = torch.tensor([[drawn[0]], [3 + drawn[1]]])
        monkeypatch.setattr(HybridForPreTraining, "_scored_rows", lambda *_, rows=rows: rows)
        output = model(views, kinds)
        assert output.nll.shape == (2, 1)
        torch.testing.assert_close(output.nll[:, 0], whole.nll[(0, 1), drawn])
        torch.testing.assert_close(output.contrastive_loss, whole.contrastive_loss)
        losses.append(output.loss)
        for name, gradient in gradients(model, output.loss).items():
            sums[name] = sums.get(name, 0) + gradient
    torch.testing.assert_close(torch.stack(losses).mean(), whole.loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(sums[name] / len(draws), gradient, msg=name)


def test_every_image_is_drawn_as_often_and_no_other_is_scored(make_model, views):
    model = make_model(generative_share=2 / 3).train()
    where = (2, 3, views.device)
    drawn = torch.cat([model._scored_rows(*where).flatten() for _ in range(300)])
    counts = torch.bincount(drawn, minlength=6)
    assert len(drawn) == 300 * 4 and counts.min() > 150 and counts.max() < 250
    rows = model._scored_rows(*where)
    assert rows.shape == (2, 2) and len(rows.unique()) == 4 and (rows[0] < 3).all() and (rows[1] >= 3).all()


def test_all_are_scored_outside_of_training(make_model, views):
    model = make_model(generative_share=0.1)
    assert model(views).nll.shape == (2, 3)
    assert model.train()(views).nll.shape == (2, 1)


@pytest.mark.parametrize("share", [1, 2 / 3])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_further_views_take_no_part_in_the_likelihood(make_model, views, encoder, share):
    model = make_model(num_generative_views=1, generative_share=share, **ENCODERS[encoder]).double()
    kinds = torch.tensor([0, 1])
    clean = model.eval()(views[:1], kinds[:1])
    torch.manual_seed(0)
    output = model.train()(views, kinds)
    assert output.nll.shape == (1, round(3 * share)) and output.projections.shape[0] == 2
    if share == 1:
        torch.testing.assert_close(output.nll, clean.nll)
        torch.testing.assert_close(output.generative_loss, clean.generative_loss)
    # Nor do they outside of training, where the loss says which checkpoint is the best.
    judged = model.eval()(views, kinds)
    torch.testing.assert_close(judged.nll, clean.nll)
    torch.testing.assert_close(judged.generative_loss, clean.generative_loss)
    # The gradient of the likelihood: that of the clean view alone.
    if share == 1:
        expected = gradients(model, model(views[:1], kinds[:1]).generative_loss)
        for name, gradient in gradients(model.train(), model(views, kinds).generative_loss).items():
            torch.testing.assert_close(gradient, expected[name], msg=name)


def test_more_generative_views_than_there_are(make_model, views):
    assert make_model(num_generative_views=5).train()(views).nll.shape == (2, 3)


def test_refusals(make_model, tiny_config):
    for share in (0, -0.5, 1.5):
        with pytest.raises(Exception, match=r"generative_share=.* must lie in \(0, 1\]"):
            tiny_config(generative_share=share)
    with pytest.raises(Exception, match="num_generative_views=0 must be at least 1"):
        tiny_config(num_generative_views=0)
    with pytest.raises(ValueError, match="num_generative_views=None"):
        make_model(num_generative_views=1, objective={"name": "simctg"})
    with pytest.raises(ValueError, match="generative_share=1"):
        make_model(generative_share=0.5, objective={"name": "simctg"})

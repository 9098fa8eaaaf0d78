"""A batch in chunks has the loss and the gradient of the batch in one piece."""

import pytest
import torch
from accelerate import Accelerator
from training_fixtures import log_lines, reset_accelerate, small_config, train_whole

from modeling_hybrid.objectives import OBJECTIVES
from modeling_hybrid.objectives.base import AUGMENTED, CLEAN, LOCAL
from training.optimization.gradient_cache import cached_backward


BATCH_SIZE, CHUNK_SIZE = 7, 3


def build(make_model, name="info_nce", **overrides):
    small = {name: {"num_samples": 20} for name in ("isogclr", "meow")}
    small |= {"mochi": {"queue_size": 20, "num_hard": 8}, "nnclr": {"queue_size": 20}}
    small |= {name: {"teacher_size": 3} for name in ("crd", "feature_regression")}
    objective = {"name": name, **small.get(name, {})}
    return make_model(num_view_kinds=3, image_size=8, objective=objective, **overrides).train()


def draw_inputs(model, draw_images) -> dict[str, torch.Tensor]:
    pixel_values = draw_images(model.config, 3 * BATCH_SIZE).unflatten(0, (3, BATCH_SIZE))
    return {
        "pixel_values": pixel_values,
        "view_kinds": torch.tensor([CLEAN, AUGMENTED, LOCAL]),
        "labels": torch.randint(3, (BATCH_SIZE,)),
        "sample_ids": torch.randperm(20)[:BATCH_SIZE],
        "boxes": torch.rand(3, BATCH_SIZE, 2, 2).sort(dim=2).values.flatten(2),
        "teacher": torch.randn(BATCH_SIZE, 3),
    }


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.fixture
def accelerator():
    reset_accelerate()
    return Accelerator(cpu=True)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equals_the_batch_in_one_piece(make_model, draw_images, accelerator, name):
    """Every objective; two steps, so that queues are filled and states have been visited."""
    model = build(make_model, name).double()
    other = build(make_model, name).double()
    other.load_state_dict(model.state_dict())
    for _ in range(2):
        inputs = draw_inputs(model, draw_images)
        expected = other(**inputs)
        expected.loss.backward()
        output = cached_backward(accelerator, model, inputs, CHUNK_SIZE)
        for key in ("loss", "contrastive_loss", "generative_loss", "nll"):
            torch.testing.assert_close(getattr(output, key), getattr(expected, key).detach(), rtol=1e-10, atol=0)
        assert output.telemetry.keys() == expected.telemetry.keys()
        one, two = gradients(model), gradients(other)
        reached = {key: value for key, value in two.items() if value.abs().max() > 1e-12}
        assert reached.keys() <= one.keys()
        for key in reached:
            torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-12, msg=key)
    for (key, buffer), same in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, same, msg=key)


@pytest.mark.parametrize("name", ["info_nce", "clip", "simctg"])
@pytest.mark.parametrize("attention", ["causal", "two_pass"])
def test_dropout_is_replayed(make_model, draw_images, accelerator, name, attention):
    """Against the whole batch with the random numbers of its chunks."""
    model = build(make_model, name, hidden_dropout=0.3, attention_dropout=0.2, encoder_attention=attention).double()
    inputs = draw_inputs(model, draw_images)
    state = torch.get_rng_state()
    output = cached_backward(accelerator, model, inputs, CHUNK_SIZE)
    found = gradients(model)

    # Twice the same draws: without gradient to find where each chunk begins, and with it.
    torch.set_rng_state(state)
    states, views, nll = [], [], []
    chunks = inputs["pixel_values"].split(CHUNK_SIZE, dim=1)
    for chunk in chunks:
        states.append(torch.get_rng_state())
        model.represent(chunk, inputs["view_kinds"])
    for chunk, chunk_state in zip(chunks, states, strict=True):
        torch.set_rng_state(chunk_state)
        views.append(model.represent(chunk, inputs["view_kinds"]))
        nll.append(model.score(views[-1])[0] * chunk.shape[1] / BATCH_SIZE)
    parts = {
        key: torch.cat([getattr(view.objective_batch, key) for view in views], dim=1)
        for key in views[0].objective_batch.given()
        if key != "view_kinds"
    }
    contrastive_loss, _ = model.objective(model.objective.Batch(**parts, view_kinds=inputs["view_kinds"]))
    loss = model.config.contrastive_weight * contrastive_loss + sum(nll)
    loss.backward()
    torch.testing.assert_close(output.loss, loss.detach(), rtol=1e-10, atol=0)
    expected = gradients(model)
    scale = max(gradient.abs().max() for gradient in expected.values())
    assert found.keys() == expected.keys()
    for key in expected:
        assert (found[key] - expected[key]).abs().max() < 1e-10 * scale, key

    # The masks matter: other draws give another gradient.
    cached_backward(accelerator, model, inputs, CHUNK_SIZE)
    other = gradients(model)
    assert max((other[key] - expected[key]).abs().max() for key in expected) > 1e-2 * scale


@pytest.mark.parametrize("weights", [{"contrastive_weight": 0}, {"generative_weight": 0}], ids=str)
def test_with_one_loss(make_model, draw_images, accelerator, weights):
    model = build(make_model, **weights).double()
    inputs = draw_inputs(model, draw_images)
    output, expected = cached_backward(accelerator, model, inputs, CHUNK_SIZE), model(**inputs)
    found = gradients(model)
    expected.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss.detach())
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(found[key], gradient, msg=key)


TOLD = [
    {"decoder_condition": "features"},
    {"decoder_condition": "features", "condition_gradient": True},
    {"decoder_condition": "features", "contrastive_weight": 0},
    {"decoder_condition": "latent", "name": "cmim"},
]


@pytest.mark.parametrize("overrides", TOLD, ids=str)
def test_of_a_decoder_that_is_told_something(make_model, draw_images, accelerator, overrides, monkeypatch):
    # What is drawn depends on how many are drawn together.
    monkeypatch.setattr(torch.distributions.Independent, "rsample", lambda self: self.mean)
    model = build(make_model, condition_share=1, **overrides).double()
    inputs = draw_inputs(model, draw_images)
    inputs |= {key: inputs[key][:2] for key in ("pixel_values", "view_kinds", "boxes")}
    output, expected = cached_backward(accelerator, model, inputs, CHUNK_SIZE), model(**inputs)
    found = gradients(model)
    expected.loss.backward()
    for name in ("loss", "generative_loss"):
        torch.testing.assert_close(output[name], expected[name].detach())
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(found[key], gradient, rtol=0, atol=1e-12, msg=key)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_in_chunks_is_the_run_in_one_piece(tmp_path, precision):
    overrides = {
        "model__hidden_dropout": 0,
        "optimization__num_steps": 4,
        "logging__log_every": 1,
        "optimization__precision": precision,
    }
    train_whole(small_config(tmp_path / "whole", **overrides))
    train_whole(small_config(tmp_path / "chunks", optimization__chunk_size=5, **overrides))
    # A gradient of bf16 has a hundredth of rounding in it, whatever the pieces.
    tolerance = {"rel": 1e-3} if precision == "fp32" else {"rel": 0.1, "abs": 0.1}
    for row, other in zip(log_lines(tmp_path / "whole"), log_lines(tmp_path / "chunks"), strict=True):
        for name in {"loss", "contrastive_loss", "gradient_norm", "bits_per_dim"} & set(row):
            assert other[name] == pytest.approx(row[name], **tolerance), name

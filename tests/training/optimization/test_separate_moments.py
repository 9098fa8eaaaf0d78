"""With an optimizer for each loss, neither sets the pace of the other."""

import pytest
import torch
from accelerate import Accelerator
from training_fixtures import assert_same_run, log_lines, reset_accelerate, small_config, train_until, train_whole

from training.comparison.budget import Step
from training.optimization.gradients import gradients_of_losses
from training.optimization.separate_moments import SeparateSteps


SEPARATE = {"optimization__separate_moments": "true", "model__hidden_dropout": 0}


@pytest.fixture
def accelerator():
    reset_accelerate()
    return Accelerator(cpu=True)


def optimizer_of(model, rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0)


def changes(model, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach() - state[name] for name, value in model.named_parameters()}


def test_each_loss_moves_the_weights_as_far_as_it_would_alone(make_model, draw_images, accelerator):
    """Two steps from the same weights: the first change of both losses is the sum of the changes of each."""
    model = make_model(contrastive_weight=0.25, generative_weight=1.0).double()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = {"pixel_values": draw_images(model.config, 8).view(2, 4, 1, 4, 4).double()}
    rates = 1e-3, 0.25e-3
    both = [optimizer_of(model, rate) for rate in rates]
    output, norms = SeparateSteps(accelerator, model, both, max_gradient_norm=1e-3)(inputs)
    assert output.loss.isfinite() and all(norm > 1e-3 for norm in norms.values())
    found = changes(model, state)
    assert all(parameter.grad is None for parameter in model.parameters())

    expected = {name: torch.zeros_like(value) for name, value in found.items()}
    for loss, rate in zip(("generative_loss", "contrastive_loss"), rates, strict=True):
        model.load_state_dict(state)
        alone = optimizer_of(model, rate)
        getattr(model(**inputs), loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        alone.step()
        alone.zero_grad()
        for name, change in changes(model, state).items():
            expected[name] += change
    for name, change in found.items():
        torch.testing.assert_close(change, expected[name], rtol=1e-6, atol=1e-12, msg=name)
    assert all(change.abs().max() > 1e-5 for name, change in found.items() if name.endswith("weight")), found.keys()


@pytest.mark.parametrize("num_passes", [1, 2])
@pytest.mark.parametrize("chunk_size", [0, 3])
@pytest.mark.parametrize("name", ["info_nce", "clip", "simctg"])
def test_chunks_and_several_passes_change_nothing(make_model, draw_images, name, chunk_size, num_passes):
    """Three steps, against the mean gradient of each loss over whole batches; clip has a weight of its own."""
    reset_accelerate()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=num_passes)
    model, plain = (make_model(objective={"name": name}, contrastive_weight=0.25).double() for _ in range(2))
    plain.load_state_dict(model.state_dict())
    rates = 1e-3, 0.25e-3
    take_steps = SeparateSteps(accelerator, model, [optimizer_of(model, rate) for rate in rates], 0.5, chunk_size)
    optimizers = [optimizer_of(plain, rate) for rate in rates]
    for _ in range(3):
        batches = [draw_images(model.config, 14).view(2, 7, 1, 4, 4).double() for _ in range(num_passes)]
        for pixel_values in batches:
            with accelerator.accumulate(model):
                output, norms = take_steps({"pixel_values": pixel_values, "view_kinds": torch.tensor([0, 1])})
        gradients, outputs = [], [plain(pixel_values, view_kinds=torch.tensor([0, 1])) for pixel_values in batches]
        for loss in ("generative_loss", "contrastive_loss"):
            mean = sum(getattr(one, loss) for one in outputs) / num_passes
            gradients.append(torch.autograd.grad(mean, list(plain.parameters()), retain_graph=True, allow_unused=True))
        for optimizer, found, norm in zip(optimizers, gradients, norms.values(), strict=True):
            for parameter, gradient in zip(plain.parameters(), found, strict=True):
                parameter.grad = gradient
            expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            torch.testing.assert_close(norm, expected, rtol=1e-9, atol=0)
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(output.loss.detach(), outputs[-1].loss.detach(), rtol=1e-9, atol=0)
    for (key, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9, msg=key)


def test_a_run_of_chunks_and_several_passes_resumes_exactly(tmp_path, monkeypatch):
    small = {"optimization__chunk_size": 5, "optimization__gradient_accumulation_steps": 2}
    small |= SEPARATE | {"optimization__num_steps": 6, "logging__evaluate_every": 6}
    train_whole(small_config(tmp_path / "whole", **small))
    config = small_config(tmp_path / "stopped", **small)
    train_until(config, 11, monkeypatch)  # in the middle of step 6, the state is of step 4
    train_whole(config)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_gradients_are_those_of_each_loss(make_model, draw_images):
    model = make_model().double()
    inputs = {"pixel_values": draw_images(model.config, 8).view(2, 4, 1, 4, 4).double()}
    parameters = list(model.parameters())
    output, (generative, contrastive) = gradients_of_losses(model, inputs, parameters)
    reached = {"generative": generative, "contrastive": contrastive}
    assert all(any(gradient is None for gradient in of_loss) for of_loss in reached.values())
    weights = model.config.generative_weight, model.config.contrastive_weight
    model(**inputs).loss.backward()
    for parameter, *parts in zip(parameters, generative, contrastive, strict=True):
        total = sum(weight * part for weight, part in zip(weights, parts, strict=True) if part is not None)
        torch.testing.assert_close(total, parameter.grad)
    assert output.loss.isfinite()


def test_with_a_decoder_that_is_told_features(tmp_path, monkeypatch):
    """The draws of which image is told are those of the run, also where it goes on; the gradient may reach further."""
    told = SEPARATE | {"model__decoder_condition": "features", "model__condition_gradient": "true"}
    whole = train_whole(small_config(tmp_path / "whole", **told))
    assert whole.model.condition.projection.weight.abs().max() > 1e-3
    assert whole.model.condition.nothing.abs().max() > 1e-3
    config = small_config(tmp_path / "stopped", **told)
    train_until(config, 6, monkeypatch)
    train_whole(config)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_learns_logs_both_norms_and_resumes_exactly(tmp_path, monkeypatch):
    config = small_config(tmp_path / "whole", **SEPARATE)
    whole = train_whole(config)
    rows = [row for row in log_lines(tmp_path / "whole") if "loss" in row]
    assert all(row["gradient_norm"] > 0 and row["contrastive_gradient_norm"] > 0 for row in rows)
    assert rows[-1]["generative_loss"] < rows[0]["generative_loss"]
    generative, contrastive = whole.optimizers
    assert contrastive.param_groups[0]["initial_lr"] == pytest.approx(0.3 * generative.param_groups[0]["initial_lr"])

    killed = small_config(tmp_path / "killed", **SEPARATE)
    train_until(killed, 7, monkeypatch)
    train_whole(killed)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__contrastive_weight": 0}, "needs both losses, but model.contrastive_weight=0"),
        ({"optimization__precision": "fp16"}, "precision=fp16 scales them; set precision=bf16"),
    ],
)
def test_what_it_cannot_do_is_told(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        small_config(tmp_path, **SEPARATE, **overrides)


def test_its_step_is_measured(tmp_path):
    Step(small_config(tmp_path, **SEPARATE))()

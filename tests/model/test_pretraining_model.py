"""Both losses in one pass: what each part costs and reaches, precision, checkpointing, compilation."""

import copy

import pytest
import torch
from other_processes import run_group
from torch import distributed

from modeling_hybrid import HybridForImageGeneration, HybridForPreTraining
from modeling_hybrid.objectives import OBJECTIVES, ObjectiveBatch
from modeling_hybrid.objectives.info_nce import InfoNCE


GENERATIVE_PARTS = ("decoder.", "depth_head.")
# One number for every patch, which the softmax over patches takes out again: its gradient is nothing but rounding.
WITHOUT_EFFECT = "encoder.pooler.score.bias"


def gradients(model, *args, **kwargs):
    """Loss and {name: gradient} after one backward pass; `None` for what the loss does not reach."""
    model.zero_grad(set_to_none=True)
    loss = model(*args, **kwargs).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture
def views(tiny_config, draw_images):
    return draw_images(tiny_config(), 8).view(2, 4, 1, 4, 4)


def test_each_term_on_the_output(make_model, views):
    model = make_model(contrastive_weight=0.3, generative_weight=0.5)
    output = model(views, view_kinds=torch.tensor([0, 1]))
    torch.testing.assert_close(output.loss, 0.5 * output.generative_loss + 0.3 * output.contrastive_loss)
    assert output.nll.shape == (2, 4)
    assert not output.nll.requires_grad
    torch.testing.assert_close(output.nll.mean() / 16, output.generative_loss.detach())
    assert output.projections.shape == (2, 4, 8)
    torch.testing.assert_close(output.projections.norm(dim=-1), torch.ones(2, 4))
    assert output.pooler_output.shape == (2, 4, 16)
    expected, _ = InfoNCE(temperature=0.2)(ObjectiveBatch(projections=output.projections))
    torch.testing.assert_close(output.contrastive_loss, expected)
    assert {"alignment", "uniformity", "contrastive_accuracy"} <= set(output.telemetry)
    assert not any(value.requires_grad for value in output.telemetry.values())


def test_each_view_is_scored_with_its_own_tag(make_model, views):
    model = make_model()
    output = model(views, view_kinds=torch.tensor([1, 0]))
    for view, kind in ((0, 1), (1, 0)):
        nll = -model.log_likelihood(views[view], view_kinds=torch.full((4,), kind))
        torch.testing.assert_close(output.nll[view], nll)
    assert (model(views).nll[0] - output.nll[0]).abs().max() > 0.1


def test_without_contrastive_weight_it_is_a_plain_autoregressive_model(make_model, views):
    """The gradients are those of the generation model with the same weights."""
    model = make_model(contrastive_weight=0).double()
    plain = HybridForImageGeneration(copy.deepcopy(model.config)).double().eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("projector.")})
    loss, found = gradients(model, views)
    plain_loss, expected = gradients(plain, views.flatten(0, 1))
    torch.testing.assert_close(loss, plain_loss, rtol=1e-12, atol=0)
    for name, gradient in expected.items():
        if name.startswith("encoder.pooler."):
            assert gradient is None
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12, msg=name)
            assert gradient.abs().max() > 1e-6, name
    assert all(found[name] is None for name in found if name.startswith("projector."))
    output = model(views)
    assert output.contrastive_loss is None
    assert output.projections is None


@pytest.mark.parametrize("encoder_attention", ["causal", "bidirectional", "two_pass"])
def test_without_generative_weight_nothing_generative_is_touched(make_model, views, encoder_attention):
    model = make_model(generative_weight=0, encoder_attention=encoder_attention).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(5):
        loss, found = gradients(model, views)
        for name, gradient in found.items():
            if name.startswith(GENERATIVE_PARTS):
                assert gradient is None, name
            else:
                assert gradient is not None, name
                assert gradient.isfinite().all(), name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-3
    after = model.state_dict()
    for name in before:
        if name.startswith(GENERATIVE_PARTS):
            assert torch.equal(before[name], after[name]), name
        elif name != WITHOUT_EFFECT:
            assert (before[name] - after[name]).abs().max() > 1e-3, name
    output = model(views)
    assert output.generative_loss is None
    assert output.nll is None


def test_the_losses_add_up_in_the_gradients(make_model, views):
    """The hybrid gradient is the weighted sum of the two pure ones."""
    weights = {"contrastive_weight": 0.3, "generative_weight": 0.7}
    model = make_model(**weights).double()
    _, both = gradients(model, views)
    parts = {}
    for name, other in (("contrastive_weight", "generative_weight"), ("generative_weight", "contrastive_weight")):
        single = copy.deepcopy(model)
        setattr(single.config, other, 0)
        setattr(single.config, name, weights[name])
        parts[name] = gradients(single, views)[1]
    for name, gradient in both.items():
        pieces = [part[name] for part in parts.values() if part[name] is not None]
        torch.testing.assert_close(gradient, sum(pieces))


@pytest.mark.parametrize("encoder_attention", ["causal", "two_pass"])
def test_one_pass_serves_both_losses(make_model, views, encoder_attention):
    model = make_model(encoder_attention=encoder_attention)
    calls = []
    model.encoder.stack.register_forward_hook(lambda *arguments: calls.append(1))
    model(views)
    assert len(calls) == (1 if encoder_attention == "causal" else 2)


def test_gradients_reach_every_parameter(make_model, views):
    _, found = gradients(make_model(), views, view_kinds=torch.tensor([0, 1]))
    unreached = [name for name, gradient in found.items() if gradient is None or gradient.abs().max() < 1e-4]
    assert unreached == [WITHOUT_EFFECT]


def test_one_view_has_no_contrastive_loss(make_model, views):
    model = make_model()
    output = model(views[0])
    assert output.contrastive_loss is None
    torch.testing.assert_close(output.loss, output.generative_loss)
    assert output.projections.shape == (1, 4, 8)


def test_one_view_without_any_loss_is_refused(make_model, views):
    model = make_model(generative_weight=0)
    with pytest.raises(ValueError, match=r"one view.*generative_weight=0"):
        model(views[0])


def test_a_batch_of_one_with_a_contrastive_loss_is_refused(make_model, views):
    with pytest.raises(ValueError, match=r"not 2 view\(s\) of 1 image\(s\).*raise the batch size"):
        make_model()(views[:, :1])
    assert make_model(contrastive_weight=0)(views[:, :1]).loss.isfinite()


def test_bad_views_are_refused(make_model, views):
    model = make_model()
    with pytest.raises(ValueError, match=r"shape \(4, 4\), expected \(num_views, batch_size"):
        model(views[0, 0, 0])
    with pytest.raises(ValueError, match=r"view_kinds has shape \(8,\), expected \(2,\)"):
        model(views, view_kinds=torch.zeros(8, dtype=torch.long))


def test_any_number_of_views(make_model, draw_images):
    model = make_model()
    output = model(draw_images(model.config, 12).view(3, 4, 1, 4, 4), view_kinds=torch.tensor([0, 1, 1]))
    assert output.nll.shape == (3, 4)
    assert output.loss.isfinite()


@pytest.mark.parametrize(
    "overrides", [{}, {"encoder_attention": "two_pass"}, {"decoder_condition": "features", "condition_gradient": True}]
)
def test_gradient_checkpointing_changes_nothing(make_model, views, overrides):
    model = make_model(hidden_dropout=0.1, attention_dropout=0.1, **overrides).train()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()  # by either name: transformers 5.18 knows the second, 6 will not
            assert all(layer.gradient_checkpointing for layer in model.encoder.stack.layers)
        torch.manual_seed(3)
        results.append(gradients(model, views))
    (loss, expected), (loss_again, found) = results
    torch.testing.assert_close(loss_again, loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_dropout_is_off_in_eval_mode_only(make_model, views):
    model = make_model(hidden_dropout=0.2, attention_dropout=0.2)
    torch.testing.assert_close(model(views).loss, model(views).loss)
    model.train()
    assert (model(views).loss - model(views).loss).abs() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_losses_are_fp32_under_autocast(make_model, views, dtype, implementation):
    model = make_model(attn_implementation=implementation)
    expected = model(views)
    with torch.autocast("cpu", dtype=dtype):
        output = model(views)
    for name in ("loss", "contrastive_loss", "generative_loss", "nll", "projections"):
        value = getattr(output, name)
        assert value.dtype is torch.float32
        assert value.isfinite().all()
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.02, atol=0)
    torch.testing.assert_close(output.contrastive_loss, expected.contrastive_loss, rtol=0.05, atol=0.01)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    with torch.autocast("cpu", dtype=dtype):
        assert model.log_likelihood(views[0]).dtype is torch.float32
        assert model.generate(batch_size=2).shape == (2, 4, 4)


@pytest.mark.parametrize(
    ("encoder_attention", "backend"),
    [
        ("causal", "aot_eager"),
        ("two_pass", "aot_eager"),
        pytest.param("causal", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_eager(make_model, views, encoder_attention, backend):
    """In one graph: nothing in the forward pass falls back to Python."""
    model = make_model(encoder_attention=encoder_attention)
    kinds = torch.tensor([0, 1])
    loss, expected = gradients(model, views, view_kinds=kinds)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    model.zero_grad(set_to_none=True)
    compiled_loss = compiled(views, view_kinds=kinds).loss
    compiled_loss.backward()
    torch.testing.assert_close(compiled_loss.detach(), loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_it_learns(tiny_config):
    """Two kinds of image, told apart and predicted after two hundred steps."""
    torch.manual_seed(0)
    config = tiny_config(num_levels=2, contrastive_weight=0.1)
    model = HybridForPreTraining(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = torch.tensor([-1.0, 1.0, -1.0, 1.0]).view(4, 1).expand(4, 4)
    patterns = torch.stack([rows, rows.T])[:, None]
    for _ in range(200):
        optimizer.zero_grad()
        model(torch.stack([patterns, patterns])).loss.backward()
        optimizer.step()
    bits = model.eval().bits_per_dim(patterns)
    # One bit says which of the two it is.
    torch.testing.assert_close(bits * 16, torch.ones(2), rtol=0, atol=0.5)
    assert model.bits_per_dim(-patterns).min() > 0.3


# What objectives need beside projections.


def objective(name: str, **arguments):
    return {"objective": {"name": name, **arguments}, "num_view_kinds": 3}


def test_a_model_has_the_parts_that_its_objective_needs(make_model):
    parts = {"projector", "patch_projector", "momentum_encoder"}
    for config, expected in (
        (objective("info_nce"), {"projector"}),
        (objective("mochi"), {"projector", "momentum_encoder"}),
        (objective("pixpro"), {"patch_projector", "momentum_encoder"}),
        (objective("simctg"), set()),
    ):
        model = make_model(**config)
        assert {part for part in parts if getattr(model, part) is not None} == expected
        assert not any(name.split(".")[0] in parts - expected for name in model.state_dict())


def test_a_momentum_encoder_starts_as_a_copy_and_follows(make_model, views):
    model = make_model(noise=0, **objective("mochi", momentum=0.75), hidden_dropout=0.5).train()
    assert not model.momentum_encoder.training
    own, other = model.momentum_encoder.encoder.state_dict(), model.encoder.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    assert torch.equal(model.momentum_encoder.projector.layers[0].weight, model.projector.layers[0].weight)
    before, change = (f(model.projector.layers[0].weight.detach()) for f in (torch.clone, torch.randn_like))
    with torch.no_grad():
        model.projector.layers[0].weight += change
    model.update_momentum_encoder()
    torch.testing.assert_close(model.momentum_encoder.projector.layers[0].weight, before + 0.25 * change)
    model(views).loss.backward()
    assert all(parameter.grad is None for parameter in model.momentum_encoder.parameters())
    # Keys are those of the momentum encoder, without dropout.
    keys = model.keys(model.represent(views))["keys"]
    assert torch.equal(keys, model.keys(model.represent(views))["keys"]) and not keys.requires_grad
    assert (keys - model.eval()(views).projections).abs().max() > 0.1


def test_a_checkpoint_goes_on_with_another_objective(make_model, tmp_path):
    """A momentum encoder that the checkpoint does not hold starts as a copy of the encoder that it holds."""
    model = make_model()
    model.save_pretrained(tmp_path)
    other = HybridForPreTraining.from_pretrained(tmp_path, objective={"name": "mochi"})
    for name, weight in model.encoder.state_dict().items():
        assert torch.equal(other.encoder.state_dict()[name], weight), name
        assert torch.equal(other.momentum_encoder.encoder.state_dict()[name], weight), name
    assert other.objective.step == 0 and (other.objective.queue.ids == -1).all()


def test_missing_parts_are_named(make_model, views):
    model = make_model(**objective("sup_con"))
    with pytest.raises(ValueError, match="SupCon needs labels"):
        model(views)
    assert model(views, labels=torch.tensor([0, 1, 0, 1])).loss.isfinite()
    model = make_model(**objective("isogclr", num_samples=9)).train()
    with pytest.raises(ValueError, match="needs sample_ids"):
        model(views)
    with pytest.raises(ValueError, match="lacks num_samples"):
        make_model(**objective("isogclr"))
    with pytest.raises(ValueError, match="generative_weight=0"):
        make_model(**objective("simctg"), generative_weight=0)


def test_decoder_states_are_decoded_once(make_model, views, monkeypatch):
    """The objective and the likelihood read the same ones."""
    model = make_model(**objective("simctg"))
    calls = []
    decode = type(model).decode
    monkeypatch.setattr(type(model), "decode", lambda self, *a, **k: calls.append(1) or decode(self, *a, **k))
    output = model(views)
    assert len(calls) == 1
    assert output.contrastive_loss.isfinite() and output.generative_loss.isfinite()
    assert model(views[0]).contrastive_loss.isfinite()  # one view is enough


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_compiles(make_model, draw_images, name):
    """Two steps in training mode, the second with the state of the first."""
    small = {name: {"num_samples": 6} for name in ("isogclr", "meow")} | {"mochi": {"queue_size": 40, "num_hard": 8}}
    model = make_model(**objective(name, **small.get(name, {}))).train()
    compiled = copy.deepcopy(model)
    torch.compiler.reset()
    compiled.compile(backend="aot_eager")
    inputs = {
        "pixel_values": draw_images(model.config, 18).view(3, 6, 1, 4, 4),
        "view_kinds": torch.tensor([0, 1, 2]),
        "labels": torch.arange(6) % 3,
        "sample_ids": torch.arange(6),
        "boxes": torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 6, 4),
        "teacher": torch.linspace(-1, 1, 6)[:, None],
    }
    for _ in range(2):
        (loss, expected), (compiled_loss, found) = gradients(model, **inputs), gradients(compiled, **inputs)
        torch.testing.assert_close(compiled_loss, loss)
        for key, gradient in expected.items():
            # Compiled, what the loss does not reach may get zeros.
            gradient = torch.zeros_like(found[key]) if gradient is None and found[key] is not None else gradient
            torch.testing.assert_close(found[key], gradient, msg=lambda text, key=key: f"{key}: {text}")


# Several processes.


def one_process_of_two(rank, config, state, views, path):
    """Half of the batch, gradients averaged as DDP does."""
    results = {}
    for num_views in (2, 3):
        model = HybridForPreTraining(config).double()
        model.load_state_dict(state)
        output = model(views[:num_views].chunk(2, dim=1)[rank])
        output.loss.backward()
        for value in (output.loss, *[parameter.grad for parameter in model.parameters()]):
            distributed.all_reduce(value.data)
        results[num_views] = output.loss.detach() / 2, [parameter.grad / 2 for parameter in model.parameters()]
        # One image per process: the negatives are elsewhere.
        results["one image", num_views] = model(views[:num_views, rank : rank + 1]).contrastive_loss.detach()
    if rank == 0:
        torch.save(results, path)


def test_two_processes_equal_one(make_model, draw_images, tmp_path):
    """The loss of the whole model and every gradient, for two views and for three."""
    model = make_model().double()
    views = draw_images(model.config, 18, dtype=torch.float64).view(3, 6, 1, 4, 4)
    run_group(one_process_of_two, 2, tmp_path, model.config, model.state_dict(), views, tmp_path / "result.pt")
    results = torch.load(tmp_path / "result.pt")
    for num_views in (2, 3):
        model.zero_grad()
        loss = model(views[:num_views]).loss
        loss.backward()
        found_loss, found = results[num_views]
        torch.testing.assert_close(found_loss, loss.detach())
        for (name, parameter), gradient in zip(model.named_parameters(), found, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, msg=name)
        assert results["one image", num_views].isfinite()

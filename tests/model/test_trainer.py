"""Pre-training through transformers' Trainer: the loss it reports and minimises, its parts, momentum, resumption."""

import copy

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from modeling_hybrid import HybridForImageGeneration, HybridForPreTraining
from modeling_hybrid.trainer_hybrid import HybridTrainer, views_first


class Examples(Dataset):
    """Views of `num` images, with labels or without."""

    def __init__(self, images: torch.Tensor, with_labels: bool):
        self.views = images.unflatten(0, (-1, 2))
        self.with_labels = with_labels

    def __len__(self):
        return len(self.views)

    def __getitem__(self, i):
        example = {"pixel_values": self.views[i], "view_kinds": torch.tensor([0, 1])}
        return example | ({"labels": i % 2} if self.with_labels else {})


class Images(Examples):
    def __getitem__(self, i):
        return {"pixel_values": self.views[i, 0]}


def arguments(folder, **overrides):
    return TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "max_steps": 2,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        | overrides,
    )


def objective(name, **values):
    return {"objective": {"name": name, **values}}


@pytest.mark.parametrize("with_labels", [False, True])
@torch.no_grad()
def test_evaluation_has_the_loss_and_its_parts(make_model, draw_images, tmp_path, with_labels):
    model = make_model(**objective("sup_con" if with_labels else "info_nce"))
    data = Examples(draw_images(model.config, 20), with_labels)
    metrics = HybridTrainer(model, arguments(tmp_path), eval_dataset=data).evaluate()
    labels = torch.arange(10) % 2 if with_labels else None
    expected = {}
    for first in (0, 4, 8):  # 4, 4 and 2 images
        views = data.views[first : first + 4].transpose(0, 1)
        chosen = labels[first : first + 4] if with_labels else None
        output = model.eval()(views, view_kinds=torch.tensor([0, 1]), labels=chosen)
        for name in ("loss", "contrastive_loss", "generative_loss"):
            expected[name] = expected.get(name, 0) + views.shape[1] / 10 * output[name].item()
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-4), name
    assert "eval_alignment" in metrics


def test_every_log_line_has_the_parts_of_the_loss(make_model, draw_images, tmp_path):
    model = make_model()
    data = Examples(draw_images(model.config, 16), with_labels=False)
    settings = arguments(tmp_path, eval_strategy="steps", eval_steps=1, max_steps=3)
    trainer = HybridTrainer(model, settings, train_dataset=data, eval_dataset=data)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 3
    for line in lines:
        found = line["generative_loss"] + 0.1 * line["contrastive_loss"]
        assert line["loss"] == pytest.approx(found, rel=1e-4)
    assert len({line["generative_loss"] for line in lines}) == 3
    assert len([line for line in trainer.state.log_history if "eval_generative_loss" in line]) == 3


@pytest.mark.parametrize("kind", ["likelihood", "both"])
def test_accumulated_gradients_are_those_of_the_whole_batch(make_model, draw_images, tmp_path, kind):
    """The likelihood is a mean over images. Contrast is not, so for it the reference is the mean of the parts."""
    model = make_model(contrastive_weight=0 if kind == "likelihood" else 0.1)
    data = Examples(draw_images(model.config, 16), with_labels=True)
    batch = data.views.transpose(0, 1)
    parts = batch.chunk(2, dim=1) if kind == "both" else [batch]
    reference = copy.deepcopy(model)
    losses = [reference(part, view_kinds=torch.tensor([0, 1])).loss / len(parts) for part in parts]
    sum(losses).backward()
    found = {}
    settings = arguments(tmp_path, gradient_accumulation_steps=2, max_steps=1, max_grad_norm=0, learning_rate=0.0)

    class Watched(HybridTrainer):
        def get_train_dataloader(self):
            return self.get_eval_dataloader(self.train_dataset)  # in order

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            found.update({name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None})
            return loss

    trainer = Watched(model, settings, train_dataset=data)
    trainer.train()
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    logged = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
    assert logged == pytest.approx(sum(losses).item(), rel=1e-4)


def test_the_best_evaluation_is_loaded_at_the_end(make_model, draw_images, tmp_path):
    model = make_model()
    data = Examples(draw_images(model.config, 16), with_labels=False)
    settings = arguments(
        tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True
    )
    trainer = HybridTrainer(model, settings, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-4)
    trainer.save_model(tmp_path / "best")
    assert HybridForPreTraining.from_pretrained(tmp_path / "best").num_parameters() == model.num_parameters()


def test_the_momentum_encoder_moves_once_a_step(make_model, draw_images, tmp_path):
    model = make_model(**objective("mochi", queue_size=40, num_hard=8))
    data = Examples(draw_images(model.config, 32), with_labels=False)
    settings = arguments(tmp_path, gradient_accumulation_steps=2, max_steps=3)
    HybridTrainer(model, settings, train_dataset=data).train()
    assert model.momentum_encoder.num_updates == 3


@torch.no_grad()
def test_the_plain_trainer_evaluates_the_likelihood(make_model, draw_images, tmp_path):
    model = make_model(HybridForImageGeneration)
    data = Images(draw_images(model.config, 16), with_labels=False)
    metrics = Trainer(model, arguments(tmp_path, per_device_eval_batch_size=8), eval_dataset=data).evaluate()
    assert metrics["eval_loss"] == pytest.approx(model(data.views[:, 0]).loss.item(), rel=1e-4)


def test_without_its_losses(make_model, draw_images):
    model = make_model()
    x = draw_images(model.config, 6).view(2, 3, 1, 4, 4)
    plain, output = model(x), model(x, return_loss=False)
    assert set(output) == {"projections", "pooler_output"}
    torch.testing.assert_close(output.projections, plain.projections)
    assert set(HybridForImageGeneration.forward(model, x[0], return_loss=False)) == {"logits"}


def test_one_view_is_not_trained_on_by_halves(make_model, draw_images):
    """Only the likelihood would learn, and nothing would say so."""
    model = make_model()
    x = draw_images(model.config, 4)
    assert model(x).contrastive_loss is None
    with pytest.raises(ValueError, match=r"InfoNCE needs at least 2 view\(s\).*or set contrastive_weight=0"):
        model.train()(x)
    assert make_model(contrastive_weight=0).train()(x).loss.isfinite()


def test_examples_without_views_are_refused(draw_images, tiny_config):
    x = draw_images(tiny_config(), 8)
    with pytest.raises(ValueError, match=r"shape \(8, 1, 4, 4\), expected \(batch_size, num_views"):
        views_first({"pixel_values": x})
    kinds = torch.tensor([[0, 1], [0, 1], [0, 1], [1, 0]])
    with pytest.raises(ValueError, match="view_kinds differ between the images"):
        views_first({"pixel_values": x.view(4, 2, 1, 4, 4), "view_kinds": kinds})
    batch = views_first({"pixel_values": x.view(4, 2, 1, 4, 4), "boxes": torch.rand(4, 2, 4)})
    assert batch["pixel_values"].shape == (2, 4, 1, 4, 4) and batch["boxes"].shape == (2, 4, 4)

"""
Fine-tuning of a pre-trained checkpoint for classification, with transformers' `Trainer`.

Shape letters: N images, C channels, H height, W width.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import evaluate
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed

from modeling_hybrid import HybridForImageClassification, HybridImageProcessor
from modeling_hybrid.levels import levels_to_pixels
from modeling_hybrid.objectives.base import CLEAN

from ..config import AugmentationConfig
from ..data.views import Views
from ..embedding import embed
from .methods import trainer_of


@dataclass
class FinetuneTrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults that suit a small labelled set."""

    # Not `None`, which `TrainingArguments` replaces by a folder of its own.
    output_dir: str = field(default="", metadata={"help": "By default `finetuned` beside the checkpoint."})
    learning_rate: float = 1e-3
    num_train_epochs: float = 30
    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 256
    warmup_steps: float = 0.1
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.05
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 1
    load_best_model_at_end: bool = True
    # On few validation images the loss tells epochs apart that have the same accuracy.
    metric_for_best_model: str | None = "loss"
    logging_steps: float = 50
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = torch.accelerator.is_available()


def quiet_arguments(folder: str, **arguments) -> FinetuneTrainingArguments:
    """Of one of many runs that are compared: nothing is shown or kept, nor measured on the way unless asked."""
    unwatched = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    return FinetuneTrainingArguments(
        output_dir=folder,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=not torch.accelerator.is_available(),
        **(unwatched | arguments),
    )


class LabelledImages(Dataset):
    """
    `pixel_values` (C, H, W), `view_kinds` and `labels` of levels (N, C, H, W) and labels (N,): integers, or values.

    With `views`, every visit draws one of the views of pre-training, under the tag it had there; else the clean image.
    """

    def __init__(self, levels: torch.Tensor, labels: np.ndarray, num_levels: int, views: Views | None = None):
        self.levels = levels
        self.labels = labels
        self.num_levels = num_levels
        self.views = views

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> list[dict]:
        levels, kinds = self.levels[indices], torch.full((len(indices),), CLEAN)
        if self.views is None:
            pixel_values = levels_to_pixels(levels, self.num_levels)
        else:
            every_view, kinds_of_views = self.views(levels).values()
            chosen = torch.randint(len(every_view), (len(indices),))
            pixel_values, kinds = every_view[chosen, torch.arange(len(indices))], kinds_of_views[chosen]
        return [
            {"pixel_values": image, "view_kinds": kind, "labels": label.item()}
            for image, kind, label in zip(pixel_values, kinds, self.labels[indices], strict=True)
        ]

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]


@torch.no_grad()
def start_head(model: HybridForImageClassification, levels: torch.Tensor, labels: np.ndarray) -> None:
    """
    Start the head as logistic regression on the features of levels (N, C, H, W) with integer labels (N,).

    A random head would first pull good features apart (Kumar et al. 2022, arXiv 2202.10054).
    """
    features = embed(model, levels, batch_size=256, with_likelihood=False).features
    probe = LogisticRegression(max_iter=500).fit(features, labels)
    weight, bias = torch.from_numpy(probe.coef_), torch.from_numpy(probe.intercept_)
    if len(probe.classes_) == 2:  # one row, that of the second class against the first
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    model.classifier.weight[probe.classes_] = weight.to(model.classifier.weight)
    model.classifier.bias[probe.classes_] = bias.to(model.classifier.bias)


@cache
def metric() -> evaluate.EvaluationModule:
    return evaluate.load(str(Path(__file__).parents[1] / "metrics" / "classification"))


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    return metric().compute(predictions=np.argmax(prediction.predictions, -1), references=prediction.label_ids)


def finetune_checkpoint(
    checkpoint: str | Path,
    levels: dict[str, torch.Tensor],
    labels: dict[str, np.ndarray],
    class_names: list[str],
    augmentation: AugmentationConfig,
    arguments: TrainingArguments,
    freeze_encoder: bool = False,
    method: str = "ce",
) -> Trainer:
    """
    Train a classifier on views of the training images; the evaluation that is best on validation is kept.

    Args:
        checkpoint: folder or Hub id of a pre-trained model and its image processor, which stay as they are.
        levels: (N, C, H, W) of the splits `train` and `validation`.
        labels: (N,) integers of the same.
        freeze_encoder: train the linear head only.
        method: what to train it by ([`trainer_of`]).

    Returns:
        The trainer after training, with the model.
    """
    build_trainer = trainer_of(method)
    set_seed(arguments.seed)
    model = HybridForImageClassification.from_pretrained(
        checkpoint,
        id2label=dict(enumerate(class_names)),
        label2id={name: i for i, name in enumerate(class_names)},
    )
    start_head(model.to(arguments.device), levels["train"], labels["train"])
    if freeze_encoder:
        model.encoder.requires_grad_(False)
    num_levels = model.config.num_levels
    views = Views(augmentation, model.config.image_size, num_levels)
    trainer = build_trainer(
        model=model,
        args=arguments,
        train_dataset=LabelledImages(levels["train"], labels["train"], num_levels, views),
        eval_dataset=LabelledImages(levels["validation"], labels["validation"], num_levels),
        processing_class=HybridImageProcessor.from_pretrained(checkpoint),
        compute_metrics=compute_metrics,
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    return trainer

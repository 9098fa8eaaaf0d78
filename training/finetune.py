"""
Fine-tuning of a pre-trained checkpoint for classification, with transformers' `Trainer`.

    python -m training.finetune --checkpoint runs/digits/model [--freeze_encoder] [any argument of TrainingArguments]

The data are those of the pre-training run, with their labels, or those of another configuration (`--config`). The
epoch that is best on the validation split is kept and measured on the test split, once.
"""

import json
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import evaluate
import numpy as np
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from torch.utils.data import Dataset
from transformers import EvalPrediction, HfArgumentParser, Trainer, TrainingArguments, set_seed

from modeling_hybrid import HybridConfig, HybridForImageClassification, HybridImageProcessor
from modeling_hybrid.objectives.base import CLEAN

from .augmentation import Views
from .config import AugmentationConfig, load_config
from .data import load_splits
from .evaluation.embedding import embed, levels_to_pixels


RESULTS = "finetuning.json"


@dataclass
class FinetuneArguments:
    checkpoint: str = field(metadata={"help": "Folder or Hub id of a pre-trained checkpoint."})
    config: str | None = field(
        default=None, metadata={"help": "Configuration that names the data; by default that of the pre-training run."}
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "Train the linear head only."})


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
    dataloader_pin_memory: bool = torch.cuda.is_available()


class LabelledImages(Dataset):
    """
    `pixel_values` (C, H, W), `view_kinds` and `labels` of levels (N, C, H, W) and integer labels (N,).

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
            {"pixel_values": image, "view_kinds": kind, "labels": int(label)}
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
    return evaluate.load(str(Path(__file__).parent / "metrics" / "classification"))


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
) -> Trainer:
    """
    Train a classifier on views of the training images; the evaluation that is best on validation is kept.

    Args:
        checkpoint: folder or Hub id of a pre-trained model and its image processor, which stay as they are.
        levels: (N, C, H, W) of the splits `train` and `validation`.
        labels: (N,) integers of the same.
        freeze_encoder: train the linear head only.

    Returns:
        The trainer after training, with the model.
    """
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
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=LabelledImages(levels["train"], labels["train"], num_levels, views),
        eval_dataset=LabelledImages(levels["validation"], labels["validation"], num_levels),
        processing_class=HybridImageProcessor.from_pretrained(checkpoint),
        compute_metrics=compute_metrics,
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    return trainer


def finetune(options: FinetuneArguments, arguments: TrainingArguments) -> dict[str, float]:
    """
    Train on the training split, keep the epoch that is best on validation, and measure it on both other splits.

    Returns:
        Metrics by name, `eval_...` on the validation split and `test_...` on the test split.

    Raises:
        ValueError: no configuration of the data, data without labels, or an output folder with other results.
    """
    checkpoint = Path(options.checkpoint)
    config_path = Path(options.config) if options.config else checkpoint.parent / "config.yaml"
    if not config_path.exists():
        raise ValueError(f"{config_path} does not exist; name the configuration of the data with --config.")
    config = load_config(config_path)
    output_dir = Path(arguments.output_dir or checkpoint.parent / "finetuned")
    if (output_dir / RESULTS).exists():
        raise ValueError(f"{output_dir} holds a finished fine-tuning; choose another --output_dir.")
    arguments.output_dir = str(output_dir)
    model_config = HybridConfig.from_pretrained(options.checkpoint)
    splits = load_splits(config.data, model_config, max_streamed=2000)
    if splits.class_names is None:
        raise ValueError(
            f"data.dataset={config.data.dataset!r} has no labels (data.label_column={config.data.label_column!r}); "
            "fine-tuning for classification needs them."
        )
    parts = {"train": splits.reference, "validation": splits.validation, "test": splits.test}
    levels = {name: part.all_levels() for name, part in parts.items()}
    labels = {name: part.labels() for name, part in parts.items()}
    trainer = finetune_checkpoint(
        options.checkpoint,
        levels,
        labels,
        splits.class_names,
        config.augmentation,
        arguments,
        options.freeze_encoder,
    )
    results = trainer.evaluate()
    trainer.save_state()
    test = LabelledImages(levels["test"], labels["test"], model_config.num_levels)
    results |= trainer.evaluate(test, metric_key_prefix="test")
    trainer.save_model()
    (output_dir / RESULTS).write_text(json.dumps(results, indent=2) + "\n")
    return results


def main(arguments: list[str]) -> int:
    parser = HfArgumentParser((FinetuneArguments, FinetuneTrainingArguments), description=__doc__.split("\n\n")[0])
    transformers.utils.logging.disable_progress_bar()
    try:
        results = finetune(*parser.parse_args_into_dataclasses(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

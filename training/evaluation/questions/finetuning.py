"""What the whole encoder is worth as a start: it is fine-tuned for classification, on a copy."""

import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import Trainer

from ...finetuning.classification import FinetuneTrainingArguments, LabelledImages, finetune_checkpoint
from ..confidence import calibration
from ..subject import Findings, Subject


logger = logging.getLogger(__name__)
# How often the model is measured on validation; the best of these is kept.
NUM_MEASUREMENTS = 10


def evaluate(subject: Subject) -> Findings:
    """
    Accuracy on the test split after `evaluation.num_finetuning_steps` steps, and [`calibration`] of that classifier.

    Nothing without labels, or where the number of steps is 0.
    """
    num_steps = subject.config.evaluation.num_finetuning_steps
    if subject.labels is None or num_steps == 0:
        return Findings()
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        # The evaluation is the main process's alone, but Trainer would wait for all of them.
        logger.warning(
            "evaluation.num_finetuning_steps=%d is skipped in a run of several processes; it takes `python -m "
            "training.evaluate` on the checkpoint.",
            num_steps,
        )
        return Findings()
    with TemporaryDirectory() as folder:
        trainer = finetune(subject, Path(folder))
        logits = {name: predict(trainer, subject, name) for name in ("validation", "test")}
    labels = subject.labels
    correct = logits["test"].argmax(axis=1) == labels["test"]
    found = calibration(logits["validation"], labels["validation"], logits["test"], labels["test"])
    return Findings(
        {"finetuned_accuracy": float(correct.mean())} | {f"finetuned_{name}": value for name, value in found.items()},
        {"finetuned_correct": correct},
    )


def finetune(subject: Subject, folder: Path) -> Trainer:
    """The trainer of a copy of the subject's encoder, after training; all its files lie in `folder`."""
    subject.model.save_pretrained(folder / "model")
    subject.image_processor.save_pretrained(folder / "model")
    num_steps = subject.config.evaluation.num_finetuning_steps
    measured_every = max(1, num_steps // NUM_MEASUREMENTS)
    arguments = FinetuneTrainingArguments(
        output_dir=str(folder / "finetuned"),
        seed=subject.config.seed,
        max_steps=num_steps,
        eval_strategy="steps",
        eval_steps=measured_every,
        save_strategy="steps",
        save_steps=measured_every,
        save_only_model=True,
        per_device_eval_batch_size=subject.config.evaluation.batch_size,
        use_cpu=subject.model.device.type == "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    names, augmentation = subject.splits.class_names, subject.config.augmentation
    # Trainer prints its log, but the output of an evaluation is its pictures.
    with redirect_stdout(sys.stderr):
        return finetune_checkpoint(folder / "model", subject.levels, subject.labels, names, augmentation, arguments)


def predict(trainer: Trainer, subject: Subject, split: str) -> np.ndarray:
    """Logits (N, Y) of the images of a split."""
    images = LabelledImages(subject.levels[split], subject.labels[split], subject.model.config.num_levels)
    return trainer.predict(images).predictions

"""The evaluation of a checkpoint: every question that is asked, then the results, pictures and card they make."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor

from ..config import PretrainConfig
from ..data.splits import Splits
from ..hardware import best_device, describe
from ..reports import model_card, pictures
from .subject import Findings, Subject


def evaluate_run(
    checkpoint: Path,
    splits: Splits,
    config: PretrainConfig,
    output_dir: Path,
    command: str,
    train_seconds: float | None = None,
) -> dict:
    """
    Ask the questions of `evaluation.suite`, and write `evaluation.json`, `per_image.npz`, `figures/` and the card under
    `output_dir`.

    Everything is fitted or chosen on the training and validation splits; the test split is only scored, here.
    """
    device = best_device()
    model = HybridForPreTraining.from_pretrained(checkpoint).to(device).eval()
    folder = output_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    subject = Subject(model, HybridImageProcessor.from_pretrained(checkpoint), config, splits, folder)
    results, per_image = {}, {} if subject.groups is None else {"groups": subject.groups}
    for name in config.evaluation.suite:
        findings: Findings = import_module(f"{__package__}.questions.{name}").evaluate(subject)
        results |= findings.results
        per_image |= findings.per_image
    if (output_dir / "log.jsonl").exists():
        pictures.training_curves(output_dir / "log.jsonl", folder / "training_curves.png")
    results |= {
        "num_parameters": model.num_parameters(only_trainable=True),
        "num_encoder_parameters": model.encoder.num_parameters(),
        "num_images": {name: len(split) for name, split in subject.levels.items()},
        "train_seconds": train_seconds,
        "seed": config.seed,
        "command": command,
        "hardware": describe(device),
        "versions": {"torch": torch.__version__, "transformers": model.config.transformers_version},
    }
    (output_dir / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    np.savez_compressed(output_dir / "per_image.npz", **per_image)
    model_card.write(output_dir, checkpoint, config)
    return results

"""
Evaluation of a checkpoint: probes beside raw pixels, likelihood, out-of-distribution detection, pictures, model card.

    python -m training.evaluate CHECKPOINT [--dataset NAME] [--output-dir DIR] [section.key=value ...]

Pre-training ends with the same evaluation. Results go to `evaluation.json`, pictures to `figures/`, the card to
`README.md` of the output folder.
"""

import argparse
import json
import logging
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor

from . import model_card
from .config import PretrainConfig, load_config
from .data import Splits, load_splits
from .evaluation import figures
from .evaluation.subject import Findings, Subject


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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = HybridForPreTraining.from_pretrained(checkpoint).to(device).eval()
    (output_dir / "figures").mkdir(parents=True, exist_ok=True)
    image_processor = HybridImageProcessor.from_pretrained(checkpoint)
    subject = Subject(model, image_processor, config, splits, output_dir / "figures")
    results, per_image = {}, {} if subject.groups is None else {"groups": subject.groups}
    for name in config.evaluation.suite:
        findings: Findings = import_module(f"{__package__}.evaluation.{name}").evaluate(subject)
        results |= findings.figures
        per_image |= findings.per_image
    if (output_dir / "log.jsonl").exists():
        figures.training_curves(output_dir / "log.jsonl", output_dir / "figures" / "training_curves.png")
    results |= {
        "num_parameters": model.num_parameters(only_trainable=True),
        "num_encoder_parameters": model.encoder.num_parameters(),
        "num_images": {name: len(split) for name, split in subject.levels.items()},
        "train_seconds": train_seconds,
        "seed": config.seed,
        "command": command,
        "hardware": _hardware(),
        "versions": {"torch": torch.__version__, "transformers": model.config.transformers_version},
    }
    (output_dir / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    np.savez_compressed(output_dir / "per_image.npz", **per_image)
    model_card.write(output_dir, checkpoint, config)
    return results


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread(s)"


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser("python -m training.evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a saved HybridForPreTraining")
    parser.add_argument("--config", type=Path, help="configuration; by default that of the run the checkpoint lies in")
    parser.add_argument("--dataset", help="another data.dataset: digits, a Hub id, a local dataset, a builder")
    parser.add_argument("--output-dir", type=Path, help="where results go; by default CHECKPOINT/evaluation")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    overrides = [f"data.dataset={options.dataset}"] if options.dataset else []
    try:
        config_path = options.config or options.checkpoint.parent / "config.yaml"
        if not config_path.exists():
            raise ValueError(f"{config_path} does not exist; name the configuration of the run with --config.")
        config = load_config(config_path, overrides + options.overrides)
        model_config = AutoConfig.from_pretrained(options.checkpoint)
        splits = load_splits(config.data, model_config, max_streamed=config.evaluation.max_images or 2000)
        output_dir = options.output_dir or options.checkpoint / "evaluation"
        command = " ".join(["python -m training.evaluate", *arguments])
        results = evaluate_run(options.checkpoint, splits, config, output_dir, command)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({k: v for k, v in results.items() if isinstance(v, float)}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

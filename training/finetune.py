"""
Fine-tuning of a pre-trained checkpoint for classification, with transformers' `Trainer`.

    python -m training.finetune --checkpoint runs/digits/model [--freeze-encoder] [--method ce|core_tuning]
        [any argument of TrainingArguments]

The data are those of the pre-training run, with their labels, or those of another configuration (`--config`). The
epoch that is best on the validation split is kept and measured on the test split, once.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser, TrainingArguments

from modeling_hybrid import HybridConfig

from .command import command
from .config import load_config_beside
from .data.splits import load_splits
from .finetuning.classification import FinetuneTrainingArguments, LabelledImages, finetune_checkpoint
from .finetuning.methods import METHODS
from .plain_files import require_plain_checkpoint


RESULTS = "finetuning.json"


@dataclass
class FinetuneArguments:
    checkpoint: str = field(metadata={"help": "Folder or Hub id of a pre-trained checkpoint."})
    config: str | None = field(
        default=None, metadata={"help": "Configuration that names the data; by default that of the pre-training run."}
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "Train the linear head only."})
    method: str = field(
        default="ce",
        metadata={
            "help": f"One of {', '.join(METHODS)}: cross entropy, or a file of training/finetuning. With arguments of "
            "its own: '{name: core_tuning, eta: 0.5}'."
        },
    )


def finetune(options: FinetuneArguments, arguments: TrainingArguments) -> dict[str, float]:
    """
    Train on the training split, keep the epoch that is best on validation, and measure it on both other splits.

    Returns:
        Metrics by name, `eval_...` on the validation split and `test_...` on the test split.

    Raises:
        ValueError: no configuration of the data, a damaged checkpoint, data without labels, or an output folder with
            other results.
    """
    checkpoint = Path(options.checkpoint)
    config = load_config_beside(checkpoint, Path(options.config) if options.config else None)
    require_plain_checkpoint(checkpoint)
    output_dir = Path(arguments.output_dir or checkpoint.parent / "finetuned")
    if (output_dir / RESULTS).exists():
        raise ValueError(f"{output_dir} holds a finished fine-tuning; choose another --output-dir.")
    arguments.output_dir = str(output_dir)
    model_config = HybridConfig.from_pretrained(options.checkpoint)
    splits = load_splits(config.data, model_config)
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
        options.method,
    )
    results = trainer.evaluate()
    trainer.save_state()
    test = LabelledImages(levels["test"], labels["test"], model_config.num_levels)
    results |= trainer.evaluate(test, metric_key_prefix="test")
    trainer.save_model()
    (output_dir / RESULTS).write_text(json.dumps(results, indent=2) + "\n")
    return results


@command
def main(arguments: list[str]) -> None:
    parser = HfArgumentParser((FinetuneArguments, FinetuneTrainingArguments), description=__doc__.split("\n\n")[0])
    results = finetune(*parser.parse_args_into_dataclasses(arguments))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    sys.exit(main())

"""
Evaluation of a checkpoint: probes beside raw pixels, likelihood, out-of-distribution detection, pictures, model card.

    python -m training.evaluate CHECKPOINT [--dataset NAME] [--output-dir DIR] [--missing] [section.key=value ...]

Pre-training ends with the same evaluation. Results go to `evaluation.json`, pictures to `figures/`, the card to
`README.md` of the output folder.
"""

import sys
from pathlib import Path

from modeling_hybrid import HybridConfig

from .command import add_overrides, command, overrides_of, parser_of, text_of
from .config import load_config_beside
from .data.splits import load_splits
from .evaluation.requirements import require_enough
from .evaluation.suite import evaluate_run, require_answers, summary
from .plain_files import require_plain_checkpoint


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.evaluate", __doc__)
    parser.add_argument("checkpoint", type=Path, help="folder of a saved HybridForPreTraining")
    parser.add_argument("--config", type=Path, help="configuration; by default that of the run the checkpoint lies in")
    parser.add_argument("--dataset", help="another data.dataset: digits, a Hub id, a local dataset, a builder")
    parser.add_argument("--output-dir", type=Path, help="where results go; by default CHECKPOINT/evaluation")
    parser.add_argument("--missing", action="store_true", help="ask only what has no answer there yet, and add it")
    add_overrides(parser)
    options = parser.parse_intermixed_args(arguments)
    dataset = [f"data.dataset={options.dataset}"] if options.dataset else []
    config = load_config_beside(options.checkpoint, options.config, dataset + overrides_of(options))
    require_plain_checkpoint(options.checkpoint)
    splits = load_splits(config.data, HybridConfig.from_pretrained(options.checkpoint), config.evaluation.max_images)
    require_enough(splits, config.evaluation)
    output_dir = options.output_dir or options.checkpoint / "evaluation"
    command_line = text_of("training.evaluate", arguments)
    results = evaluate_run(options.checkpoint, splits, config, output_dir, command_line, only_missing=options.missing)
    print(summary(results, output_dir, options.checkpoint))
    require_answers(results, output_dir, options.checkpoint)


if __name__ == "__main__":
    sys.exit(main())

"""
Methods of fine-tuning from few labels: the same checkpoint, images and steps for all, three seeds.

    python -m training.compare_finetuning --checkpoint model_cards/digits [--config training/configs/digits.yaml]
        [--methods ce '{name: core_tuning}' ...] [--shots 1 5 10] [--num-steps 100] [--seeds 3] [--output FILE]

The first method is the control of the others. What each gives on test images, and its paired differences from the
control, go to a file of the form of `objectives.json`.
"""

import sys
from pathlib import Path

from .command import command, parser_of, text_of


METHODS = ["ce", "{name: core_tuning, mixtures: false, focal: false}", "core_tuning"]


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.compare_finetuning", __doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a pre-trained model")
    parser.add_argument("--config", type=Path, help="names the data; by default that of the pre-training run")
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, help="as for training.finetune; the first is the control"
    )
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10], help="training images of each class")
    parser.add_argument("--num-steps", type=int, default=100, help="steps of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, with seeds 0, 1, ...")
    parser.add_argument("--output", type=Path, default=Path("runs/finetuning_methods.json"))
    options = parser.parse_args(arguments)

    from .comparison.finetuning import FewLabels
    from .comparison.systems import store
    from .config import load_config_beside
    from .plain_files import require_plain_checkpoint

    for name in ("num_steps", "seeds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1.")
    if min(options.shots) < 1:
        raise ValueError(f"--shots {min(options.shots)} must be at least 1.")
    require_plain_checkpoint(options.checkpoint)
    config = load_config_beside(options.checkpoint, options.config)
    seeds = list(range(options.seeds))
    contest = FewLabels(options.checkpoint, config, options.methods, options.shots, options.num_steps, seeds)
    arms = contest.run()
    store(options.output, text_of("training.compare_finetuning", arguments), seeds, arms, config.data.dataset)
    print(f"The values are in {options.output}.")


if __name__ == "__main__":
    sys.exit(main())

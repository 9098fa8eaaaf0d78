"""
Class-incremental learning: classes come in tasks, and of those before there are but a few images to rehearse.

    python -m training.continual --checkpoint model_cards/digits [--config training/configs/digits.yaml] [--num-tasks 5]
        [--methods replay coconut double_replay probe] [--num-rehearsed 10] [--num-steps 50] [--seeds 3] [--output FILE]

Reports the accuracy on all classes after the last task, its average over the tasks, and what was forgotten, each of
COCONUT beside the other methods, in a file of the form of `objectives.json`.
"""

import sys
from pathlib import Path

from .command import command, parser_of, text_of


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.continual", __doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a pre-trained model")
    parser.add_argument("--config", type=Path, help="names the data; by default that of the pre-training run")
    parser.add_argument("--methods", nargs="+", default=["replay", "coconut", "double_replay", "probe"])
    parser.add_argument("--num-tasks", type=int, default=5, help="the classes are dealt out to so many")
    parser.add_argument("--num-rehearsed", type=int, default=10, help="images of each class that are kept")
    parser.add_argument("--num-steps", type=int, default=50, help="of each task")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of each task")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, with seeds 0, 1, ...")
    parser.add_argument("--output", type=Path, default=Path("runs/continual.json"))
    options = parser.parse_args(arguments)

    from .comparison.continual import METHODS, Continual, contest
    from .comparison.systems import store
    from .config import load_config_beside
    from .plain_files import require_plain_checkpoint

    for name in ("num_rehearsed", "num_steps", "seeds", "learning_rate"):
        if not getattr(options, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} must be positive.")
    if unknown := sorted(set(options.methods) - METHODS.keys()):
        raise ValueError(f"--methods {' '.join(unknown)}: there are {', '.join(METHODS)}.")
    require_plain_checkpoint(options.checkpoint)
    config = load_config_beside(options.checkpoint, options.config)
    continual = Continual(
        options.checkpoint, config, options.num_tasks, options.num_rehearsed, options.num_steps, options.learning_rate
    )
    seeds = list(range(options.seeds))
    arms = contest(continual, options.methods, seeds)
    store(options.output, text_of("training.continual", arguments), seeds, arms, config.data.dataset)
    print(f"The values are in {options.output}.")


if __name__ == "__main__":
    sys.exit(main())

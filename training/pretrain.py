"""
Pre-training, from a configuration to a checkpoint with its evaluation and model card.

    python -m training.pretrain training/configs/digits.yaml [section.key=value ...]
    accelerate launch -m training.pretrain training/configs/digits.yaml
    torchrun --nproc_per_node 8 -m training.pretrain training/configs/digits.yaml

Given again, the same command goes on where it was interrupted.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .command import add_overrides, announce, command, overrides_of, parser_of, text_of


if TYPE_CHECKING:
    from .config import PretrainConfig


def pretrain(config: PretrainConfig, command: str) -> None:
    """A whole run: train (or resume), evaluate the best model, write its card."""
    from .pretraining.checkpoints import require_space_for, resume
    from .pretraining.log import TRACKED, describe
    from .pretraining.loop import train
    from .pretraining.output_folder import open_output_dir
    from .pretraining.processes import main_process_first, prepare_accelerator
    from .pretraining.run import Run

    accelerator = prepare_accelerator(config)
    with main_process_first():
        # Held to the end of this function.
        lock = open_output_dir(config) if accelerator.is_main_process else None
    run = Run(config, accelerator)
    resume(run)
    with main_process_first():
        require_space_for(run)
    accelerator.init_trackers(TRACKED, init_kwargs={"tensorboard": {"purge_step": run.progress.step + 1}})
    accelerator.print(describe(config, accelerator, run.bare_model, run.splits.train, run.views, run.batch_size))
    try:
        with run.termination, run.watch:
            train(run)
    finally:
        run.close()
    if accelerator.is_main_process:
        # Not before: no step waits for matplotlib.
        from .evaluation.suite import evaluate_run, require_answers, summary

        checkpoint = run.output_dir / "model"
        results = evaluate_run(checkpoint, run.splits, config, run.output_dir, command, run.progress.seconds)
        print(summary(results, run.output_dir, checkpoint))
        lock.close()
        require_answers(results, run.output_dir, checkpoint)


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.pretrain", __doc__)
    parser.add_argument("config", help="YAML file, for instance training/configs/digits.yaml")
    add_overrides(parser)
    options = parser.parse_intermixed_args(arguments)
    announce("Loading torch and transformers ...")
    from .config import load_config

    pretrain(load_config(options.config, overrides_of(options)), text_of("training.pretrain", arguments))


if __name__ == "__main__":
    sys.exit(main())

"""
The pass that ended a run, as its loss or its gradient was infinite or not a number, once more.

    python -m training.replay FOLDER_OF_THE_RUN [--config FOLDER_OF_THE_RUN/config.yaml]

Goes on from the last state, exactly as the run did, up to the pass whose batch lies in `FOLDER/diverged`; says what of
its weights, losses and gradients is not finite, and writes nothing. A run of several processes takes its launcher.
Data on other machines are read only where the configuration is named: the run may be somebody else's.
"""

import sys
from pathlib import Path

from .command import announce, command, parser_of


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.replay", __doc__)
    parser.add_argument("folder", type=Path, help="output_dir of the run")
    parser.add_argument("--config", type=Path, help="that of the run, if you trust all of it")
    options = parser.parse_args(arguments)
    announce("Loading torch and transformers ...")
    from .config import load_config_beside
    from .pretraining.checkpoints import resume
    from .pretraining.divergence import replay
    from .pretraining.output_folder import open_output_dir
    from .pretraining.processes import main_process_first, prepare_accelerator
    from .pretraining.run import Run

    config = load_config_beside(options.folder / "model", options.config, [f"output_dir={options.folder}"])
    accelerator = prepare_accelerator(config)
    with main_process_first():
        lock = open_output_dir(config) if accelerator.is_main_process else None
    run = Run(config, accelerator)
    resume(run)
    try:
        accelerator.print(replay(run))
    finally:
        run.close()
        if lock is not None:
            lock.close()


if __name__ == "__main__":
    sys.exit(main())

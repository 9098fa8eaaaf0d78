"""
Methods of fine-tuning for a value, not a class: how far an image has been turned, in degrees, from few images.

    python -m training.compare_regression --checkpoint model_cards/digits [--config training/configs/digits.yaml]
        [--methods ce sup_re_mix ...] [--num-images 200] [--num-steps 100] [--seeds 3] [--output FILE]

`ce` is the squared error here, and the first method the control of the others. The absolute errors on test images, and
their paired differences from the control, go to a file of the form of `objectives.json`.
"""

import sys
from pathlib import Path

from .command import command, parser_of, text_of


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.compare_regression", __doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a pre-trained model")
    parser.add_argument("--config", type=Path, help="names the data; by default that of the pre-training run")
    parser.add_argument("--methods", nargs="+", default=["ce", "sup_re_mix"], help="as for training.finetune")
    parser.add_argument("--num-images", type=int, default=200, help="to learn from")
    parser.add_argument("--num-steps", type=int, default=100, help="steps of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, with seeds 0, 1, ...")
    parser.add_argument("--output", type=Path, default=Path("runs/regression.json"))
    options = parser.parse_args(arguments)

    from .comparison.regression import Turns
    from .comparison.systems import store
    from .config import load_config_beside
    from .plain_files import require_plain_checkpoint

    for name, least in (("num_images", 2), ("num_steps", 1), ("seeds", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least {least}.")
    require_plain_checkpoint(options.checkpoint)
    config = load_config_beside(options.checkpoint, options.config)
    seeds = list(range(options.seeds))
    turns = Turns(options.checkpoint, config, options.methods, options.num_images, options.num_steps, seeds)
    arms = turns.run()
    store(options.output, text_of("training.compare_regression", arguments), seeds, arms, config.data.dataset)
    print(f"The values are in {options.output}.")


if __name__ == "__main__":
    sys.exit(main())

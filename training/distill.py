"""
Pre-training of a student: `training.pretrain`, with an objective that learns from the features of a teacher as well.

    python -m training.distill training/configs/digits.yaml --teacher model_cards/digits [section.key=value ...]

The teacher is a checkpoint of ours, any image model of transformers, or "imagenet"; it is asked once, about the clean
images. The objective is CRD, or what `model.objective` names: `model.objective='{name: feature_regression}'`.
"""

import sys

from .command import add_overrides, announce, command, overrides_of, parser_of, text_of


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.distill", __doc__)
    parser.add_argument("config", help="YAML file of the student, for instance training/configs/digits.yaml")
    parser.add_argument("--teacher", required=True, help="checkpoint that AutoModel loads, or imagenet")
    add_overrides(parser)
    options = parser.parse_intermixed_args(arguments)
    announce("Loading torch and transformers ...")
    from .config import load_config
    from .pretrain import pretrain

    chosen = ["model.objective={name: crd}", f"data.teacher={options.teacher}", *overrides_of(options)]
    pretrain(load_config(options.config, chosen), text_of("training.distill", arguments))


if __name__ == "__main__":
    sys.exit(main())

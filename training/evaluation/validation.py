"""What a recipe is tuned by: figures of the validation split alone. The test split is not touched."""

from modeling_hybrid.likelihood import bits_per_dim

from .probes import Labelled, few_shot, linear
from .subject import Findings, Subject


def evaluate(subject: Subject) -> Findings:
    """
    Linear and few-shot accuracy and bits per dimension on validation.

    The probes choose their penalty on the images that they are scored on, which flatters every recipe alike.
    """
    config = subject.config.evaluation
    train, validation = (subject.embed(subject.levels[name], with_likelihood=True) for name in ("train", "validation"))
    results = {}
    if subject.labels is not None:
        train_rows = Labelled(train.features, subject.labels["train"])
        validation_rows = Labelled(validation.features, subject.labels["validation"])
        splits = (train_rows, validation_rows, validation_rows)
        results["validation_linear_accuracy"] = float(linear(*splits).mean())
        results["validation_few_shot_accuracy"] = float(few_shot(*splits, config.num_shots, config.num_draws).mean())
    if validation.nll is not None:
        results["validation_bits_per_dim"] = float(bits_per_dim(validation.nll.mean(), subject.model.config))
    return Findings(results)

"""What a recipe is tuned by: values of the validation split alone. Nothing of the test split goes into them."""

from modeling_hybrid.likelihood import bits_per_dim

from ..probes import few_shot, is_correct
from ..subject import Findings, Subject


def evaluate(subject: Subject) -> Findings:
    """
    Linear and few-shot accuracy and bits per dimension on validation.

    The probes choose their penalty on the images that they are scored on, which flatters every recipe alike.
    """
    config, results = subject.config.evaluation, {}
    if subject.labels is not None:
        train, validation, _ = subject.labelled()
        correct = few_shot(train, validation, validation, config.num_shots, config.num_draws)
        results["validation_linear_accuracy"] = float(is_correct(subject.linear_probe(), validation).mean())
        results["validation_few_shot_accuracy"] = float(correct.mean())
    if subject.has_likelihood:
        nll = subject.embeddings["validation"].nll
        results["validation_bits_per_dim"] = float(bits_per_dim(nll.mean(), subject.model.config))
    return Findings(results)

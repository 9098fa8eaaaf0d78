"""Mean corruption error, as an `evaluate` module that loads from this folder without a network."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np


def mean_corruption_error(errors: Sequence[Sequence[float]], baseline_errors: Sequence[Sequence[float]]) -> float:
    """
    Error under corruption as a share of that of a baseline: 0 is best, 1 is as good as the baseline.

    Hendrycks and Dietterich (2019), arXiv 1903.12261, section 4: the errors of a corruption are summed over its
    severities and divided by those of the baseline, and the ratios are averaged over the corruptions. Theirs is in per
    cent, and the baseline is AlexNet.

    Args:
        errors: (corruptions, severities), in [0, 1].
        baseline_errors: of the baseline, alike.

    Raises:
        ValueError: other shapes, a value outside [0, 1], or a corruption under which the baseline makes no error.
    """
    errors, baseline_errors = np.asarray(errors, dtype=float), np.asarray(baseline_errors, dtype=float)
    if errors.ndim != 2 or errors.size == 0 or errors.shape != baseline_errors.shape:
        raise ValueError(
            f"errors has shape {errors.shape} and baseline_errors {baseline_errors.shape}, expected (corruptions, "
            "severities) of both."
        )
    for name, values in (("errors", errors), ("baseline_errors", baseline_errors)):
        outside = values[~((values >= 0) & (values <= 1))]
        if outside.size:
            raise ValueError(f"{name} holds {outside[0]}, expected shares of wrong answers in [0, 1].")
    totals = baseline_errors.sum(axis=1)
    if not totals.all():
        raise ValueError(
            f"baseline_errors[{np.flatnonzero(totals == 0)[0]}] is 0 at every severity, and no share of it exists; "
            "leave this corruption out."
        )
    return float((errors.sum(axis=1) / totals).mean())


class MeanCorruptionError(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="Error under corruptions as a share of that of a baseline; lower is better.",
            citation="Hendrycks and Dietterich (2019), arXiv 1903.12261.",
            inputs_description=(
                "errors and baseline_errors: for each corruption the shares of wrong answers at each severity."
            ),
            features=datasets.Features(
                {
                    "errors": datasets.Sequence(datasets.Value("float64")),
                    "baseline_errors": datasets.Sequence(datasets.Value("float64")),
                }
            ),
        )

    def _compute(self, errors, baseline_errors):
        return {"mean_corruption_error": mean_corruption_error(errors, baseline_errors)}

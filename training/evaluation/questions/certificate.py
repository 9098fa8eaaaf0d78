"""
How good is a linear head on the frozen features for certain? A PAC-Bayes bound on its error, after Nozawa, Germain and
Guedj 2020 (arXiv 1910.04464), who bound a contrastive risk so; here it is the error of classes.

Shape letters: N images, Y classes, P columns of a row.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import rel_entr
from scipy.stats import binomtest
from sklearn.pipeline import Pipeline

from ...hardware import fork_rng
from ..probes import Labelled, fit_linear
from ..subject import Findings, Subject


# Certificates are wrong with a probability of at most DELTA, of which a part is for the error over draws.
DELTA, DELTA_OF_DRAWS, NUM_DRAWS = 0.05, 0.01, 10
# Variances that a prior may have: LARGEST * exp(-j / FINENESS) for j = 1, 2, ...
LARGEST, FINENESS = 0.1, 100
LEARNING_RATE, FIRST_VARIANCE = 1e-2, 1e-2


def evaluate(subject: Subject) -> Findings:
    """
    Of a head whose weights are drawn anew for each image, from a Gaussian that is fitted by
    `evaluation.num_certificate_steps` steps on half of the training images: the accuracy that is certain by these
    images (`certified_accuracy`, 0 where the bound is vacuous) and by the test images, which nothing was fitted on
    (`held_out_certified_accuracy`), both at 95 %; and the accuracy itself, on the test images
    (`stochastic_accuracy`). The other half, and the validation images, give the prior.

    Nothing without labels, or where the number of steps is 0.

    Raises:
        ValueError: the encoder has learnt from these images, if only without labels, or a class is missing among those
            of the prior.
    """
    num_steps = subject.config.evaluation.num_certificate_steps
    if subject.labels is None or num_steps == 0:
        return Findings()
    if subject.has_learnt_from_these:
        raise ValueError(
            f"evaluation.num_certificate_steps={num_steps}, but the encoder has learnt from data.dataset="
            f"{subject.config.data.dataset!r}, by which nothing can be certified; name other data with --dataset, or "
            "set it to 0."
        )
    train, validation, test = subject.labelled()
    order = np.random.default_rng(0).permutation(len(train.labels))
    first, certified = (Labelled(train.features[half], train.labels[half]) for half in np.array_split(order, 2))
    probe = fit_linear(first, validation)
    if missing := np.setdiff1d(np.concatenate([train.labels, test.labels]), probe.classes_).tolist():
        raise ValueError(f"Class(es) {missing} have no image in half of the training images; give more of them.")
    prior = weights_of(probe)
    with fork_rng(torch.device("cpu")):
        torch.manual_seed(subject.config.seed)
        head, divergence, union = fit_head(prior, rows_of(probe, certified), labels_of(probe, certified), num_steps)
        errors = [head.errors(rows_of(probe, certified), labels_of(probe, certified)) for _ in range(NUM_DRAWS)]
        test_errors = head.errors(rows_of(probe, test), labels_of(probe, test))
    num_images = len(certified.labels)
    # Every image has draws of its own, so these are independent.
    risk = kl_inverse(float(np.mean(errors)), math.log(1 / DELTA_OF_DRAWS) / (NUM_DRAWS * num_images))
    held_out = binomtest(int(test_errors.sum()), len(test_errors), alternative="less").proportion_ci(1 - DELTA)
    results = {
        "certified_accuracy": 1 - bound(risk, divergence, num_images, union),
        "held_out_certified_accuracy": 1 - float(held_out.high),
        "stochastic_accuracy": 1 - float(test_errors.mean()),
        "certificate_divergence": divergence,
    }
    return Findings(results, {"stochastic_correct": ~test_errors}, {"certified": num_images})


def bound(risk: float, divergence: float, num_images: int, union: float) -> float:
    """
    The largest risk R of a Gaussian over heads, on images like these, with

        kl(risk, R) <= (divergence + union + log(2 sqrt(num_images))) / num_images

    Args:
        risk: on these images, in [0, 1].
        divergence: of the Gaussian from the prior, in nats; the prior knows nothing of these images.
        union: log(1 / delta), and more where the prior is one of many.
    """
    return kl_inverse(risk, (divergence + union + math.log(2 * math.sqrt(num_images))) / num_images)


def kl_inverse(share: float, limit: float) -> float:
    """The largest p in [share, 1] of which a coin of `share` diverges by no more than `limit` nats."""

    def excess(p: float) -> float:
        return rel_entr(share, p) + rel_entr(1 - share, 1 - p) - limit

    most = math.nextafter(1, 0)
    return 1.0 if share >= most or excess(most) <= 0 else brentq(excess, share, most, xtol=1e-12)


@dataclass
class StochasticHead:
    """Weights with means (Y, P) and variances (Y, P), all independent."""

    mean: torch.Tensor
    variance: torch.Tensor

    def draw(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits (N, Y) of rows (N, P), each of weights of its own."""
        mean = rows @ self.mean.T
        return mean + (rows.square() @ self.variance.T).sqrt() * torch.randn_like(mean)

    @torch.no_grad()
    def errors(self, rows: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
        """Which rows one draw gets wrong, (N,) booleans."""
        return (self.draw(rows).argmax(dim=1) != labels).numpy()

    def divergence(self, prior: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """In nats, from the Gaussian with means `prior` (Y, P) and one variance, ()."""
        ratio = self.variance / variance
        return (ratio - 1 - ratio.log() + (self.mean - prior).square() / variance).sum() / 2


def union_over(j: torch.Tensor) -> torch.Tensor:
    """log(1 / delta_j) where the delta_j of all j sum to what DELTA leaves."""
    return 2 * j.log() + math.log(math.pi**2 / (6 * (DELTA - DELTA_OF_DRAWS)))


def fit_head(
    prior: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, num_steps: int
) -> tuple[StochasticHead, float, float]:
    """
    The head whose bound on rows (N, P) is low, its divergence from the best of the priors, and the union over these.

    Trained on the quadratic bound (Perez-Ortiz et al. 2021, arXiv 2007.12911) of the cross entropy in bits, which is
    above the error.
    """
    mean = prior.clone().requires_grad_()
    log_variance = torch.full_like(prior, math.log(FIRST_VARIANCE)).requires_grad_()
    place = torch.tensor(FINENESS * math.log(LARGEST / FIRST_VARIANCE), dtype=prior.dtype).requires_grad_()
    # The place moves in steps of FINENESS where logarithms of variances move in steps of one.
    groups = [{"params": [mean, log_variance]}, {"params": [place], "lr": FINENESS * LEARNING_RATE}]
    optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE)

    def head() -> StochasticHead:
        return StochasticHead(mean, log_variance.exp())

    def cost(j: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return head().divergence(prior, LARGEST * (-j / FINENESS).exp()), union_over(j)

    for _ in range(num_steps):
        risk = torch.nn.functional.cross_entropy(head().draw(rows), labels) / math.log(2)
        half = (sum(cost(place.clamp(min=1))) + math.log(2 * math.sqrt(len(rows)))) / (2 * len(rows))
        optimizer.zero_grad()
        ((risk + half).sqrt() + half.sqrt()).square().backward()
        optimizer.step()
    with torch.no_grad():
        divergence, union = cost(place.round().clamp(min=1))
    return StochasticHead(mean.detach(), log_variance.detach().exp()), float(divergence), float(union)


def weights_of(probe: Pipeline) -> torch.Tensor:
    """The last layer of a linear probe with its intercepts, (Y, P + 1)."""
    weights = np.column_stack([probe[-1].coef_, probe[-1].intercept_])
    # Of two classes it has one row.
    return torch.from_numpy(np.concatenate([-weights, weights]) / 2 if len(weights) == 1 else weights).double()


def rows_of(probe: Pipeline, images: Labelled) -> torch.Tensor:
    """What the last layer of the probe sees of features (N, P), and ones: (N, P + 1)."""
    rows = probe[:-1].transform(images.features)
    return torch.from_numpy(np.column_stack([rows, np.ones(len(rows))])).double()


def labels_of(probe: Pipeline, images: Labelled) -> torch.Tensor:
    """Places (N,) of the labels among the classes of the probe."""
    return torch.from_numpy(np.searchsorted(probe.classes_, images.labels))

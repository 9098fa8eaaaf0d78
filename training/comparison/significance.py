"""
Is one model better than another, or was it luck? Paired differences on the same test images.

Shape letters: R runs (seeds), N test images.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def is_significant(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0


def as_json(found: dict[str, Difference]) -> dict[str, dict[str, float | None]]:
    """Differences by name as JSON takes them: it knows no NaN."""
    return {
        name: {key: value if math.isfinite(value) else None for key, value in asdict(difference).items()}
        for name, difference in found.items()
    }


def paired_difference(ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray | None = None) -> Difference:
    """
    Mean of `ours - theirs`, with an interval for other test images and other seeds.

    The variance is that of the mean over clusters of images (Liang and Zeger 1986, Biometrika 73; each image is its own
    cluster where there are no groups) plus that of the mean over runs; the degrees of freedom are Satterthwaite's
    (1946). Counting the noise of the test images in both errs on the wide side.

    Args:
        ours, theirs: (R, N) numbers or booleans, row r of both with the same seed, column n of both the same image;
            images that hold a NaN were not used and are left out.
        groups: (N,) integers; images of equal group are not independent.

    Raises:
        ValueError: shapes that differ, or no image at all.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"The two models were judged on {ours.shape} and {theirs.shape} (runs, images).")
    ours, theirs = ours.astype(float), theirs.astype(float)
    used = np.isfinite(ours).all(axis=0) & np.isfinite(theirs).all(axis=0)
    differences = (ours - theirs)[:, used]
    num_runs, num_images = differences.shape
    if num_images == 0:
        raise ValueError("There is no image that both models were judged on.")
    of_image = differences.mean(axis=0)
    clusters = np.arange(num_images) if groups is None else np.unique(groups[used], return_inverse=True)[1]
    sums = np.bincount(clusters, weights=of_image - of_image.mean())
    terms = []
    if len(sums) > 1:
        terms.append((len(sums) / (len(sums) - 1) * np.square(sums).sum() / num_images**2, len(sums) - 1))
    if num_runs > 1:
        terms.append((differences.mean(axis=1).var(ddof=1) / num_runs, num_runs - 1))
    return _interval(float(of_image.mean()), terms)


def difference_of_runs(ours: list[float], theirs: list[float]) -> Difference:
    """As [`paired_difference`], of values that are not a mean over images: the interval is for other seeds alone."""
    differences = np.subtract(ours, theirs)
    terms = [(differences.var(ddof=1) / len(differences), len(differences) - 1)] if len(differences) > 1 else []
    return _interval(float(differences.mean()), terms)


def _interval(mean: float, terms: list[tuple[float, int]]) -> Difference:
    """`terms` are variances with their degrees of freedom; without any, the interval is not a number."""
    variance = sum(term for term, _ in terms)
    if not terms:
        return Difference(mean, float("nan"), float("nan"))
    if variance == 0:
        return Difference(mean, mean, mean)
    freedom = variance**2 / sum(term**2 / degrees for term, degrees in terms)
    half = float(stats.t.ppf(0.975, freedom)) * variance**0.5
    return Difference(mean, mean - half, mean + half)

"""
How strange an image is to the model: one score from its feature and its likelihood, fitted without any outlier.

Shape letters: N images, P width of a feature, M single scores (feature and likelihood, or feature alone).
"""

import torch
from torch import nn
from transformers import initialization as init

from .likelihood import at_least_float32


# Keeps logarithm and quotient finite where features or scores do not spread at all.
_TINY = 1e-12


def ledoit_wolf(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean (P,) and shrunk covariance (P, P) of the rows (N, P).

    The covariance is `(1 - s) * sample_covariance + s * m * identity`, m the mean variance, with the share s of least
    expected error (Ledoit and Wolf 2004, Journal of Multivariate Analysis 88).
    """
    num_images, size = features.shape
    mean = features.mean(dim=0)
    centred = features - mean
    sample_covariance = centred.T @ centred / num_images
    variance = sample_covariance.trace() / size
    identity = torch.eye(size, dtype=features.dtype, device=features.device)
    # Squared Frobenius norms, which the paper divides by P: their quotient does not depend on it.
    distance = (sample_covariance - variance * identity).square().sum()
    error = (centred.square().sum(dim=1).square().mean() - sample_covariance.square().sum()) / num_images
    share = (error / distance.clamp(min=torch.finfo(features.dtype).tiny)).clamp(0, 1)
    return mean, (1 - share) * sample_covariance + share * variance * identity


def whitening_matrix(covariance: torch.Tensor) -> torch.Tensor:
    """W (P, P), such that W @ W.T is the pseudo-inverse of the covariance (P, P): `rows @ W` has covariance one."""
    variances, directions = torch.linalg.eigh(covariance)
    flat = variances <= variances.max() * len(variances) * torch.finfo(variances.dtype).eps
    return directions * variances.masked_fill(flat, torch.inf).rsqrt()


class StrangenessScore(nn.Module):
    """
    How strange an image is, by its feature, by its likelihood, and by both; higher is stranger.

        feature    = log of the Mahalanobis distance from the training features
        likelihood = negative log-likelihood, in nats
        combined   = -log p(likelihood) - log p(feature given the likelihood)

    p is the share of the data's images that would be stranger, under a normal distribution with the means, spreads and
    correlation that both scores have on held-out images. The sum is Fisher's (1925, Statistical Methods for Research
    Workers, section 21.1), who asks for independent scores: busy images are far from the mean and unlikely at once, so
    the distance is taken for what it is among images of equal likelihood. An image that is far too likely, as plain
    ones are to any likelihood, adds nothing by that, and is held to the small distance of plain images of the data.
    The distance is that of Lee et al. (2018, arXiv 1807.03888) with one class, and the covariance is shrunk
    ([`ledoit_wolf`]).

    Args:
        feature_size: P.
        with_likelihood: whether there is a likelihood; without one the feature is all that counts.

    Attributes:
        feature_mean: (P,) mean of the training features.
        whitening: (P, P) matrix after which distances from that mean are Euclidean.
        score_mean, score_std: (M,) mean and standard deviation of each single score on held-out images.
        correlation: (), of the two scores on held-out images; 0 without a likelihood.
        is_fitted: (), whether `fit` has been called.
    """

    def __init__(self, feature_size: int, with_likelihood: bool):
        super().__init__()
        num_scores = 2 if with_likelihood else 1
        # In fp32 whatever the dtype that the model is loaded in.
        self.register_buffer("feature_mean", torch.empty(feature_size, dtype=torch.float32))
        self.register_buffer("whitening", torch.empty(feature_size, feature_size, dtype=torch.float32))
        self.register_buffer("score_mean", torch.empty(num_scores, dtype=torch.float32))
        self.register_buffer("score_std", torch.empty(num_scores, dtype=torch.float32))
        self.register_buffer("correlation", torch.empty((), dtype=torch.float32))
        self.register_buffer("is_fitted", torch.empty((), dtype=torch.bool))
        self.start_weights()

    def _apply(self, fn, recurse=True):
        # A detector in half precision keeps its statistics as they are.
        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def start_weights(self) -> None:
        for buffer in self.buffers():
            init.zeros_(buffer)

    @torch.no_grad()
    def fit(
        self, train_features: torch.Tensor, features: torch.Tensor, nll: torch.Tensor | None = None
    ) -> "StrangenessScore":
        """
        Args:
            train_features: (N, P) features of the training images, which distances are measured from.
            features: (N', P) features of held-out images.
            nll: (N',) their negative log-likelihoods in nats.

        Raises:
            ValueError: fewer than two images, shapes that do not fit, or values that are not finite.
        """
        for name, rows in (("training", train_features), ("held-out", features)):
            if len(rows) < 2:
                raise ValueError(f"There are {len(rows)} {name} images, expected 2 or more: one image has no spread.")
            self._check_features(rows)
        self._check_nll(features, nll)
        for name, values in (("training features", train_features), ("held-out features", features), ("nll", nll)):
            if values is not None and not values.isfinite().all():
                raise ValueError(
                    f"The {name} hold values that are infinite or not a number; look for them in the weights of the "
                    "model."
                )
        # On the CPU, as not every accelerator has fp64.
        mean, covariance = ledoit_wolf(train_features.to("cpu", torch.float64))
        self.feature_mean.copy_(mean)
        self.whitening.copy_(whitening_matrix(covariance))
        scores = torch.stack(list(self._single_scores(features, nll).values()))
        self.score_mean.copy_(scores.mean(dim=1))
        self.score_std.copy_(scores.std(dim=1, correction=0) + _TINY)
        if nll is not None:
            # A handful of held-out images may lie on a line, which no others would.
            self.correlation.copy_(self._standardised(scores).prod(dim=0).mean().clamp(-0.99, 0.99))
        self.is_fitted.fill_(True)
        return self

    def forward(self, features: torch.Tensor, nll: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """
        Args:
            features: (N, P).
            nll: (N,) negative log-likelihoods in nats.

        Returns:
            Scores (N,) by name: "feature", "likelihood" (where there is one) and "combined", in fp32 at least.

        Raises:
            ValueError: not fitted, or shapes that do not fit.
        """
        # Compiled or exported code cannot branch on it.
        if not torch.compiler.is_compiling() and not self.is_fitted:
            raise ValueError(
                "There are no statistics to compare with yet; call fit() with images of the data, or load a detector "
                "that was saved after fit()."
            )
        self._check_features(features)
        self._check_nll(features, nll)
        single = self._single_scores(features, nll)
        independent = self._standardised(torch.stack(list(single.values())))
        if nll is not None:
            feature, likelihood = independent
            correlation = self.correlation.to(feature)
            given_likelihood = (feature - correlation * likelihood) / (1 - correlation**2).sqrt()
            independent = torch.stack([given_likelihood, likelihood])
        return {**single, "combined": -torch.special.log_ndtr(-independent).sum(dim=0)}

    def _standardised(self, scores: torch.Tensor) -> torch.Tensor:
        """Single scores (M, N) -> the same with mean 0 and spread 1 on held-out images."""
        return (scores - self.score_mean.to(scores)[:, None]) / self.score_std.to(scores)[:, None]

    def _single_scores(self, features: torch.Tensor, nll: torch.Tensor | None) -> dict[str, torch.Tensor]:
        features = at_least_float32(features)
        whitened = (features - self.feature_mean.to(features)) @ self.whitening.to(features)
        scores = {"feature": 0.5 * (whitened.square().sum(dim=1) + _TINY).log()}
        return scores if nll is None else scores | {"likelihood": at_least_float32(nll)}

    def _check_features(self, features: torch.Tensor) -> None:
        size = len(self.feature_mean)
        if features.dim() != 2 or features.shape[1] != size:
            raise ValueError(
                f"The features have shape {tuple(features.shape)}, expected (num_images, {size}); statistics and "
                "features must come from the same model."
            )

    def _check_nll(self, features: torch.Tensor, nll: torch.Tensor | None) -> None:
        expected = features.shape[:1] if len(self.score_mean) == 2 else None
        found = None if nll is None else nll.shape
        if found != expected:
            raise ValueError(
                f"nll has shape {found and tuple(found)}, expected {expected and tuple(expected)}: one value per "
                "image where the model has a likelihood, None where it has not."
            )

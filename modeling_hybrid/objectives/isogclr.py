"""Global contrastive loss: a running normaliser, and a temperature, for every image of the training data."""

import math
from itertools import permutations

import torch
from transformers import initialization as init

from .base import Objective, ObjectiveBatch, positive
from .distributed import gather, own_samples
from .rows import mean_positive_similarity


class ISogCLR(Objective):
    """
    iSogCLR (Qiu et al. 2023, arXiv 2305.11965), and without `individual_temperatures` SogCLR (Yuan et al. 2022, arXiv
    2202.12387). The value is the objective on this batch, averaged over samples i and ordered pairs of views (a, b):

        g_i = mean of exp(<a_i, n> / t_i)                          # n: the rows of all other samples in both views
        F = mean_i [t_i * ln g_i - <a_i, b_i> + rho * t_i]

    Its gradient is that of a surrogate, in which a moving average u_i stands for the normaliser:

        u_i = (1 - gamma) * u_i + gamma * g_i                      # the first time u_i = g_i
        mean_i [mean_n (w_n * <a_i, n>) - <a_i, b_i>]              # w_n = exp(<a_i, n> / t_i) / u_i, constant

    Every temperature takes its own gradient step with momentum m_i on F, u_i in place of g_i:

        m_i = (1 - beta) * m_i + beta * (ln u_i + rho - mean_n(w_n * <a_i, n>) / t_i)
        t_i = clip(t_i - learning_rate * m_i, min_temperature, max_temperature)

    Rows of samples in crowded places get a high temperature, others a low one. In evaluation t_i is `temperature` and
    u_i is g_i. SogCLR keeps t_i = `temperature`, and has no rho.

    Args:
        num_samples: images of the training data.
        individual_temperatures: whether each image has a temperature of its own.
        temperature: t_i at the start; must be positive, and within the bounds where it changes.
        gamma: share of the batch in u_i, in (0, 1].
        rho: radius of the distributions over negatives that are compared; the higher, the lower the temperatures.
        beta: share of the new gradient in m_i, in (0, 1].
        learning_rate: of the temperatures; must be positive.
        min_temperature: must be positive.
        max_temperature: upper bound of the temperatures.

    Raises:
        ValueError: an argument is out of its range; in `forward`, a sample id is (on the CPU only: elsewhere the check
            would wait for the device).
    """

    needs = frozenset({"projections", "sample_ids"})
    gradient_is_detached = True

    def __init__(
        self,
        num_samples: int,
        individual_temperatures: bool = True,
        temperature: float = 0.1,
        gamma: float = 0.9,
        rho: float = 0.3,
        beta: float = 0.9,
        learning_rate: float = 0.01,
        min_temperature: float = 0.05,
        max_temperature: float = 0.7,
    ):
        super().__init__()
        positive("num_samples", num_samples)
        for name, value in {"gamma": gamma, "beta": beta}.items():
            if not 0 < value <= 1:
                raise ValueError(f"{name}={value} must be in (0, 1].")
        if not rho >= 0:
            raise ValueError(f"rho={rho} must not be negative.")
        if individual_temperatures and not min_temperature <= temperature <= max_temperature:
            raise ValueError(
                f"temperature={temperature} must be in [min_temperature={min_temperature}, "
                f"max_temperature={max_temperature}]."
            )
        self.individual_temperatures = individual_temperatures
        self.temperature = positive("temperature", temperature)
        self.gamma, self.beta = gamma, beta
        self.rho = rho if individual_temperatures else 0.0
        self.learning_rate = positive("learning_rate", learning_rate)
        self.min_temperature = positive("min_temperature", min_temperature)
        self.max_temperature = max_temperature
        # ln u, of which -inf means that the image has not been seen.
        self.register_buffer("log_normalisers", torch.empty(num_samples))
        if individual_temperatures:
            self.register_buffer("temperatures", torch.empty(num_samples))
            self.register_buffer("temperature_momenta", torch.empty(num_samples))
        self.start_weights()

    def start_weights(self) -> None:
        init.constant_(self.log_normalisers, -math.inf)
        if self.individual_temperatures:
            init.constant_(self.temperatures, self.temperature)
            init.constant_(self.temperature_momenta, 0.0)

    # Compiled, the backward pass may read a state that has changed since.
    @torch.compiler.disable
    def loss(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rows, ids = batch.projections, batch.sample_ids
        num_samples = len(self.log_normalisers)
        if self.training and ids.device.type == "cpu" and not (ids.min() >= 0 and ids.max() < num_samples):
            raise ValueError(
                f"sample_ids hold {ids.min()} to {ids.max()}, but there is state for num_samples={num_samples} images, "
                f"0 to {num_samples - 1}."
            )
        if self.training and self.individual_temperatures:
            temperature = self.temperatures[ids].to(rows)
        else:
            temperature = rows.new_full(rows.shape[1:2], self.temperature)
        log_g, expected = self.normalisers(rows, temperature)
        if self.training:
            log_u = self.moving_average(log_g.detach(), ids)
            ratio = (log_g.detach() - log_u).exp()
            self.step(ids, log_u, log_u + self.rho - ratio * expected / temperature)
        else:
            ratio = 1.0

        # The gradient of t ln g is that of mean_n (w_n * <a_i, n>) with w divided by g; the ratio divides it by u.
        repulsion = temperature * log_g
        attraction = mean_positive_similarity(rows).mean()
        value = (repulsion + self.rho * temperature).mean() - attraction
        surrogate = (ratio * repulsion).mean() - attraction
        return surrogate + (value - surrogate).detach(), {"temperature": temperature.mean()}

    def normalisers(self, rows: torch.Tensor, temperature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        ln g, with gradient, and the mean similarity under softmax(<a_i, n> / t_i), without: (pairs of views, B).
        """
        candidates = gather(rows, dim=1)
        num_samples = candidates.shape[1]
        itself = own_samples(rows.shape[1], rows.device)
        left_out = torch.stack([itself, itself + num_samples], dim=1)
        log_g, expected = [], []
        for a, b in permutations(range(len(rows)), 2):
            similarities = rows[a] @ torch.cat([candidates[a], candidates[b]]).T
            logits = (similarities / temperature[:, None]).scatter(1, left_out, -torch.inf)
            log_g.append(logits.logsumexp(dim=1) - math.log(2 * (num_samples - 1)))
            with torch.no_grad():
                expected.append(torch.linalg.vecdot(logits.softmax(dim=1), similarities))
        return torch.stack(log_g), torch.stack(expected)

    def moving_average(self, log_g: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """ln u with this batch in it: (pairs of views, B)."""
        before = self.log_normalisers[ids].to(log_g)
        share = torch.where(before.isneginf(), 1.0, self.gamma).to(log_g)
        return torch.logaddexp((1 - share).log() + before, share.log() + log_g)

    @torch.no_grad()
    def step(self, ids: torch.Tensor, log_u: torch.Tensor, gradient: torch.Tensor) -> None:
        """
        Writes the state of the samples of all processes, from ln u and the gradient of the temperature by pair of
        views. A sample that is there twice gets the mean.
        """
        new = {"log_normalisers": log_u.logsumexp(dim=0) - math.log(len(log_u))}
        if self.individual_temperatures:
            momentum = (1 - self.beta) * self.temperature_momenta[ids] + self.beta * gradient.mean(dim=0)
            new["temperature_momenta"] = momentum
            new["temperatures"] = (self.temperatures[ids] - self.learning_rate * momentum).clamp(
                self.min_temperature, self.max_temperature
            )
        ids = gather(ids, dim=0)
        for name, values in new.items():
            buffer = self.get_buffer(name)
            buffer.scatter_reduce_(0, ids, gather(values.to(buffer), dim=0), "mean", include_self=False)

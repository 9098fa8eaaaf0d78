"""
Decoder state -> the exact distribution of the pixels of the next patch, at a cost that does not grow with the levels.

    p(pixel | state, known pixels) = sum_m w_m prod_c P(level_c; mean_mc, scale_mc)

A mixture of discretised logistics for each pixel (PixelCNN++, Salimans et al. 2017, arXiv 1701.05517, eq. 1 to 3),
whose channels share the component. P is the mass of a logistic distribution on the bin of a level; the first and the
last bin reach to infinity, so that the levels sum to 1. What differs: a pixel knows the decoder's state, the pixels
before it in its patch, and those around the patch in earlier ones; the means add a linear function of all of these.

Shape letters: B images, S patches, N states (images times patches), K codes and P pixels of a patch, C channels, Q
codes around a patch, M components, W width, L levels. States come last, as in (features, P, N): sums over features or
components then run over whole rows.
"""

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_hybrid import HybridConfig
from .levels import levels_to_pixels
from .likelihood import at_least_float32, in_chunks
from .sampling import Draw


# How far around its patch a pixel sees: columns to the left and rows above, and columns to the right of those.
REACH, REACH_RIGHT = 2, 4
# Least log of a scale, in units of pixel_values: far narrower than a bin of 256 levels.
MIN_LOG_SCALE = -7.0
# Logistic distributions whose masses are held at a time.
CHUNK_SIZE = 2**20


def window(patch_size: int) -> list[tuple[int, int]]:
    """Row and column, counted from the first pixel of a patch, of the pixels around it that may be known."""
    above = [(y, x) for y in range(-REACH, 0) for x in range(-REACH, patch_size + REACH_RIGHT)]
    return above + [(y, x) for y in range(patch_size) for x in range(-REACH, 0)]


@cache
def places_around(image_size: int, patch_size: int, num_channels: int) -> torch.Tensor:
    """
    (S, Q) places, among the S * K codes of an image, of what is known around each patch when it is its turn; S * K
    stands for what lies outside of the image.
    """
    side, p = image_size // patch_size, patch_size
    num_codes = num_channels * p * p
    around = window(p)
    places = torch.full((side * side, len(around), num_channels), side * side * num_codes, device="cpu")
    for patch in range(side * side):
        for i, (row, column) in enumerate(around):
            y, x = patch // side * p + row, patch % side * p + column
            if 0 <= y < image_size and 0 <= x < image_size:
                first = (y // p * side + x // p) * num_codes + (y % p * p + x % p) * num_channels
                places[patch, i] = torch.arange(first, first + num_channels, device="cpu")
    return places.flatten(1)


def half_of_neighbours(patch_size: int, num_channels: int) -> torch.Tensor:
    """(C, P, K + Q): half of the left and half of the upper neighbour; of [codes of the patch, codes around it]."""
    inside = [(y, x) for y in range(patch_size) for x in range(patch_size)]
    place = {pixel: i for i, pixel in enumerate(inside + window(patch_size))}
    weights = torch.zeros(num_channels, len(inside), len(place), num_channels)
    for i, (y, x) in enumerate(inside):
        for neighbour in ((y, x - 1), (y - 1, x)):
            for channel in range(num_channels):
                weights[channel, i, place[neighbour], channel] = 0.5
    return weights.flatten(2)


def log_mass(values: torch.Tensor, means: torch.Tensor, log_scales: torch.Tensor, num_levels: int) -> torch.Tensor:
    """
    Log of the mass that logistic distributions put on the bins of levels. The three tensors broadcast.

    Args:
        values: levels as pixel_values, on the grid of levels.
    """
    half, inverse = 1 / (num_levels - 1), torch.exp(-log_scales)
    centred = values - means
    up_to = nn.functional.logsigmoid((centred + half) * inverse)
    from_on = nn.functional.logsigmoid((half - centred) * inverse)
    # sigmoid(a) - sigmoid(b) = sigmoid(a) * sigmoid(-b) * (1 - exp(b - a)), which loses no digit in either tail.
    inside = up_to + from_on + torch.log(-torch.expm1(-2 * half * inverse))
    return torch.where(values < half - 1, up_to, torch.where(values > 1 - half, from_on, inside))


class LogisticMixtureHead(nn.Module):
    def __init__(self, config: HybridConfig):
        super().__init__()
        self.config = config
        self.num_pixels = config.patch_size**2
        channels, components, width = config.num_channels, config.num_mixture_components, config.depth_hidden_size
        # Before anything is traced, which would leave a tensor without values in the cache.
        places_around(config.image_size, config.patch_size, channels)
        num_known = config.num_codes + len(window(config.patch_size)) * channels
        self.condition = nn.Linear(config.hidden_size, width * self.num_pixels)
        # Rows (W, P) and (M, C, P), columns [codes of the patch, codes around it].
        self.known_to_hidden = nn.Parameter(torch.empty(width * self.num_pixels, num_known))
        self.known_to_means = nn.Parameter(torch.empty(components * channels * self.num_pixels, num_known))
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.output = nn.Linear(width, components * (1 + 2 * channels))

    def start_weights(self):
        components, channels = self.config.num_mixture_components, self.config.num_channels
        init.normal_(self.condition.weight, std=self.condition.in_features**-0.5)
        init.normal_(self.known_to_hidden, std=self.known_to_hidden.shape[1] ** -0.5)
        # A pixel starts as the mean of its left and its upper neighbour, give or take a few levels.
        beside = half_of_neighbours(self.config.patch_size, channels).flatten(0, 1)
        init.copy_(self.known_to_means, beside.repeat(components, 1))
        apart = torch.linspace(-0.5, 0.5, components)[:, None].expand(-1, channels).flatten()
        init.copy_(self.output.bias, torch.cat([torch.zeros(components), apart, torch.full_like(apart, -1.5)]))
        init.normal_(self.output.weight, std=0.1 * self.output.in_features**-0.5)

    def forward(self, states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """
        Log-probabilities of every level of every code, given the state and the codes before it (teacher forcing).

        Args:
            states: (B, S, D) decoder states, each of which predicts a patch.
            codes: (B, S, K) of those patches, which are the first of their images.

        Returns:
            (B, S, K, L); those of code k do not depend on codes k..K-1 of the patch, nor on later patches.
        """
        num_levels, logits = self.config.num_levels, []
        every_level = self._values(torch.arange(num_levels, device=codes.device))[:, None, None, None, None]
        for values, log_weights, means, log_scales in self._mixtures(states, codes, CHUNK_SIZE // num_levels):
            given = self._joint(values, log_weights, means, log_scales)[:, :-1].log_softmax(0)  # (M, C, P, N)
            of_level = log_mass(every_level, means, log_scales, num_levels)  # (L, M, C, P, N)
            logits.append((of_level + given).logsumexp(1).permute(3, 2, 1, 0).flatten(1, 2))
        return torch.cat(logits).unflatten(0, codes.shape[:2])

    def nll(self, states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of each code in nats, (B, S, K), fp32 at least. Arguments as in [`forward`]."""
        nll = []
        for mixture in self._mixtures(states, codes, CHUNK_SIZE):
            # Of each channel, given those before it.
            of_code = torch.diff(self._joint(*mixture).logsumexp(0), dim=0)  # (C, P, N)
            nll.append(-of_code.permute(2, 1, 0).flatten(1))
        return torch.cat(nll).view(codes.shape)

    def sample(self, states: torch.Tensor, codes: torch.Tensor, draw: Draw) -> torch.Tensor:
        """
        Draw the codes of one patch, pixel by pixel.

        Where the distributions are those of the model, the component of a pixel is drawn once, and each level by the
        inverse of its distribution function; else each level is drawn from the probabilities of all levels.

        Args:
            states: (B, D) decoder states.
            codes: (B, s, K) of the patches before it.

        Returns:
            codes (B, K).
        """
        num_codes, channels, width = self.config.num_codes, self.config.num_channels, self.config.depth_hidden_size
        around = self._around(codes, slice(codes.shape[1], codes.shape[1] + 1))[:, 0]
        # What is not drawn yet counts as level 0, and each level that is drawn adds its distance from there.
        known = torch.cat([around.new_full((len(around), num_codes), -1), around], dim=1)
        weights = self._known_to_hidden(), self._known_to_means()
        rows = torch.cat([self._hidden(states, known, weights[0]), self._means(known, weights[1]).flatten(0, 1)])
        # Pixel by pixel, so that those still to be drawn lie together: (B, P * (W + M * C)), and weights beside it.
        size, rows = len(rows), rows.permute(2, 1, 0).flatten(1)
        weights = torch.cat([w[:, :num_codes].unflatten(0, (-1, self.num_pixels)) for w in weights])
        weights = weights.permute(2, 1, 0).flatten(1).to(rows.dtype)
        per_level = weights * (2 / (self.config.num_levels - 1))
        noise = self._noise(len(states), draw) if draw.is_plain else None
        drawn = []
        for pixel in range(self.num_pixels):
            own, start, end = slice(pixel * channels, (pixel + 1) * channels), pixel * size, (pixel + 1) * size
            hidden, means = rows[:, start : start + width].to(states.dtype), rows[:, start + width : end]
            between = weights[own, start + width : end].unflatten(1, (-1, channels))
            if noise is None:
                drawn.append(self._draw_warped(hidden, means, between, draw))
            else:
                drawn.append(self._draw_plain(hidden, means, between, noise[pixel]))
            rows[:, end:].addmm_(drawn[-1], per_level[own, end:])
        return torch.cat(drawn, dim=1).long()

    def _noise(self, num_states: int, draw: Draw) -> torch.Tensor:
        """For each pixel, Gumbel noise for its M components, and logistic noise for its C levels: (P, N, M + C)."""
        components, channels = self.config.num_mixture_components, self.config.num_channels
        shape = (self.num_pixels, num_states, components + channels)
        uniform = draw.uniform(math.prod(shape), self.output.weight.device).clamp(2**-24, 1 - 2**-24).view(shape)
        return torch.cat([-(-uniform[..., :components].log()).log(), uniform[..., components:].logit()], dim=-1)

    def _draw_plain(
        self, hidden: torch.Tensor, means: torch.Tensor, between: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """
        The levels of a pixel, (N, C): one component for all channels (the largest of log-probabilities plus Gumbel
        noise is a draw), then each level by the inverse of its distribution function. A loop over pixels takes as long
        as it has operations, so states come first here, and only the component that is drawn is made use of.

        Args:
            hidden: (N, W), given all earlier pixels.
            means: (N, M * C) the part of the means that known pixels make.
            between: (C, M, C) what a channel adds to the means of those after it.
            noise: (N, M + C), as [`_noise`] gives it.
        """
        components, channels = self.config.num_mixture_components, self.config.num_channels
        last = self.config.num_levels - 1
        output = at_least_float32(self.output(self.norm(self.activation(hidden))))
        component = (output[:, :components] + noise[:, :components]).argmax(1)
        output[:, components : components * (1 + channels)] += means
        of_components = output[:, components:].unflatten(1, (2, components, channels))
        chosen = of_components.gather(2, component[:, None, None, None].expand(-1, 2, 1, channels))[:, :, 0]
        scales = chosen[:, 1].clamp(min=MIN_LOG_SCALE).exp()
        levels = torch.addcmul(chosen[:, 0], scales, noise[:, components:]).add_(1).mul_(last / 2)
        if channels > 1:
            between = between.index_select(1, component)  # (C, N, C)
        for channel in range(channels):
            level, later = levels[:, channel].round_().clamp_(0, last), slice(channel + 1, None)
            if channel + 1 < channels:
                levels[:, later].addcmul_(between[channel, :, later], level[:, None])
        return levels

    def _draw_warped(
        self, hidden: torch.Tensor, means: torch.Tensor, between: torch.Tensor, draw: Draw
    ) -> torch.Tensor:
        """The same where `draw` changes the probabilities: of all levels of each code, given the codes before it."""
        num_levels, levels = self.config.num_levels, []
        log_weights, own_means, log_scales = self._components(hidden.T)
        means = own_means + means.T.view_as(own_means)
        every_level = self._values(torch.arange(num_levels, device=means.device))[:, None, None]
        for channel in range(self.config.num_channels):
            mean, log_scale = means[:, channel], log_scales[:, channel]
            of_level = log_weights + log_mass(every_level, mean, log_scale, num_levels)  # (L, M, N)
            levels.append(draw(of_level.logsumexp(1).T))
            value = self._values(levels[-1])
            log_weights = (log_weights + log_mass(value, mean, log_scale, num_levels)).log_softmax(0)
            means = torch.addcmul(means, between[channel, :, :, None], value + 1)
        return torch.stack(levels, dim=1).to(means.dtype)

    def _mixtures(self, states: torch.Tensor, codes: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """
        The distributions of all pixels, `size` logistics at a time: values of the codes (C, P, N), log weights
        (M, P, N), means and log scales (M, C, P, N).
        """
        values = self._values(codes)
        known = torch.cat([values, self._around(codes, slice(codes.shape[1]))], dim=-1).flatten(0, 1)
        to_hidden, to_means = self._known_to_hidden(), self._known_to_means()
        for part, some in in_chunks(size // len(to_means), states.flatten(0, 1), known):
            shape = (self.num_pixels, some.shape[0])
            log_weights, means, log_scales = self._components(self._hidden(part, some, to_hidden).flatten(1))
            own = some[:, : self.config.num_codes].T.unflatten(0, (self.num_pixels, -1)).transpose(0, 1)
            means = means.unflatten(-1, shape) + self._means(some, to_means)
            yield own, log_weights.unflatten(-1, shape), means, log_scales.unflatten(-1, shape)

    def _hidden(self, states: torch.Tensor, known: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """States (N, D) and what is known (N, K + Q) -> (W, P, N), by the weight of [`_known_to_hidden`]."""
        hidden = self.condition.weight @ states.T + self.condition.bias[:, None] + weight @ known.T.to(weight.dtype)
        return hidden.unflatten(0, (-1, self.num_pixels))

    def _means(self, known: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What is known (N, K + Q) -> its part of the means, (M, C, P, N), by the weight of [`_known_to_means`]."""
        # In half precision neighbouring levels of 256 would be one.
        with torch.autocast(known.device.type, enabled=False):
            means = at_least_float32(weight) @ known.T.to(at_least_float32(weight).dtype)
        return means.unflatten(0, (self.config.num_mixture_components, -1, self.num_pixels))

    def _known_to_hidden(self) -> torch.Tensor:
        """A pixel is told of the pixels before it only."""
        first_codes = torch.arange(self.num_pixels) * self.config.num_channels
        return self._hide(self.known_to_hidden, first_codes)

    def _known_to_means(self) -> torch.Tensor:
        """A code is told of the codes before it only, those of its own pixel among them."""
        channels = torch.arange(self.config.num_channels)
        return self._hide(self.known_to_means, channels[:, None] + torch.arange(self.num_pixels) * len(channels))

    def _hide(self, weight: torch.Tensor, num_shown: torch.Tensor) -> torch.Tensor:
        """
        Weights whose rows, in turn, see so many codes of their patch; what is around it, all of them see.
        """
        num_codes, num_shown = self.config.num_codes, num_shown.flatten()
        place = torch.arange(weight.shape[1])
        is_shown = (place < num_shown[:, None]) | (place >= num_codes)
        return (weight.unflatten(0, (-1, len(num_shown))) * is_shown.to(weight.device)).flatten(0, 1)

    def _components(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden rows (W, R) of R pixels -> log weights (M, R), means and log scales (M, C, R), fp32 at least."""
        components, channels = self.config.num_mixture_components, self.config.num_channels
        rows = self.norm(self.activation(hidden).T)
        output = at_least_float32(self.output.weight @ rows.T + self.output.bias[:, None])
        log_weights, means, log_scales = output.split([components, components * channels, components * channels])
        means, log_scales = (part.unflatten(0, (components, channels)) for part in (means, log_scales))
        return log_weights.log_softmax(0), means, log_scales.clamp(min=MIN_LOG_SCALE)

    def _joint(
        self, values: torch.Tensor, log_weights: torch.Tensor, means: torch.Tensor, log_scales: torch.Tensor
    ) -> torch.Tensor:
        """Log of the mass of each component and of the first c channels, c = 0..C, under it: (M, C + 1, P, N)."""
        mass = log_mass(values, means, log_scales, self.config.num_levels)
        return torch.cat([log_weights[:, None], mass], dim=1).cumsum(1)

    def _values(self, codes: torch.Tensor) -> torch.Tensor:
        return levels_to_pixels(codes, self.config.num_levels)

    def _around(self, codes: torch.Tensor, patches: slice) -> torch.Tensor:
        """What is known around those `patches` when codes (B, s, K) are: values (B, S', Q), 0 outside of the image."""
        config, values = self.config, nn.functional.pad(self._values(codes).flatten(1), (0, 1))
        places = places_around(config.image_size, config.patch_size, config.num_channels)[patches].to(codes.device)
        return values[:, places.clamp(max=values.shape[1] - 1)]

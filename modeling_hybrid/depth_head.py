"""
Decoder state -> the exact distribution of the K codes of the next patch.

    p(code_1 ... code_K | state) = prod_k p(code_k | state, code_<k)

A neural autoregressive density estimator (NADE, Larochelle and Murray 2011, arXiv 1605.02226), with two differences:
each group of channels weighs the earlier codes in its own way, and feed-forward layers follow before the shared output.
Its cost per code is two small matrix products, where a depth transformer pays for attention projections at every code.

Shape letters: B images, S patches, N states (images times patches), K codes, L levels, W width of the head, G channel
groups.
"""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_hybrid import HybridConfig
from .likelihood import code_nll, in_chunks
from .patch_codes import ordinal_table
from .sampling import Draw
from .transformer import HybridMLP


# Logits that are held at a time.
CHUNK_SIZE = 2**24


class DepthLayer(nn.Module):
    def __init__(self, config: HybridConfig):
        super().__init__()
        width = config.depth_hidden_size
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = HybridMLP(width, 2 * width, config.hidden_act)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.mlp(self.norm(hidden_states))


class DepthHead(nn.Module):
    def __init__(self, config: HybridConfig):
        super().__init__()
        self.config = config
        num_codes, width = config.num_codes, config.depth_hidden_size
        self.condition = nn.Linear(config.hidden_size, num_codes * width)
        if num_codes > 1:
            self.code_embedding = nn.Embedding(config.num_levels, width)
            self.mixing = nn.Parameter(torch.empty(config.num_depth_groups, num_codes, num_codes))
        self.layers = nn.ModuleList([DepthLayer(config) for _ in range(config.num_depth_layers)])
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.output = nn.Linear(width, config.num_levels)

    def start_weights(self):
        init.normal_(self.condition.weight, std=self.condition.in_features**-0.5)
        # Neighbouring levels start with similar output rows; the scale keeps the first logits close to uniform.
        scale = 0.5 * self.output.in_features**-0.5
        init.copy_(self.output.weight, ordinal_table(*self.output.weight.shape) * scale)
        if self.config.num_codes > 1:
            init.copy_(self.code_embedding.weight, ordinal_table(*self.code_embedding.weight.shape))
            init.normal_(self.mixing, std=self.config.num_codes**-0.5)

    def _condition(self, states: torch.Tensor) -> torch.Tensor:
        """What the state says about each code: (N, D) -> (N, K, W)."""
        return self.condition(states).unflatten(-1, (self.config.num_codes, -1))

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., W) -> (..., L)."""
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.output(self.norm(hidden_states))

    def forward(self, states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """
        Logits of every code given the state and the codes before it (teacher forcing).

        Args:
            states: (B, S, D) decoder states.
            codes: (B, S, K) codes of the patch that each state predicts.

        Returns:
            logits (B, S, K, L); those of code k do not depend on codes k..K-1.
        """
        return self._predict(states.flatten(0, 1), codes.flatten(0, 1)).unflatten(0, codes.shape[:2])

    def nll(self, states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of each code in nats, (B, S, K), fp32 at least. Arguments as in [`forward`]."""
        flat = states.flatten(0, 1), codes.flatten(0, 1)
        chunks = in_chunks(CHUNK_SIZE // (self.config.num_codes * self.config.num_levels), *flat)
        return torch.cat([code_nll(self._predict(*chunk), chunk[1]) for chunk in chunks]).view(codes.shape)

    def _predict(self, states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """States (N, D) and codes (N, K) -> logits (N, K, L)."""
        hidden_states = self._condition(states)
        if self.config.num_codes > 1:
            # Strictly below the diagonal: code k is told of the codes before it only.
            mixing = self.mixing.tril(-1)
            # Codes before states: einsum then multiplies without copying the values twice.
            values = self.code_embedding(codes.T).unflatten(-1, (len(mixing), -1))
            context = torch.einsum("gkj,jngw->nkgw", mixing, values)
            hidden_states = (hidden_states.unflatten(-1, (len(mixing), -1)) + context).flatten(-2)
        return self._logits(hidden_states)

    def sample(self, states: torch.Tensor, codes: torch.Tensor, draw: Draw) -> torch.Tensor:
        """
        Draw the codes of one patch one after the other.

        Args:
            states: (B, D) decoder states.
            codes: (B, s, K) of the patches before it, which the state has seen.

        Returns:
            codes (B, K).
        """
        hidden_states = self._condition(states)
        num_codes = self.config.num_codes
        if num_codes > 1:
            group_size = self.config.depth_hidden_size // len(self.mixing)
            mixing = self.mixing.permute(2, 1, 0).repeat_interleave(group_size, dim=-1)  # (from, to, W)
        drawn = []
        for k in range(num_codes):
            drawn.append(draw(self._logits(hidden_states[:, k])))
            if k + 1 < num_codes:
                hidden_states[:, k + 1 :].addcmul_(mixing[k, k + 1 :], self.code_embedding(drawn[k])[:, None])
        return torch.stack(drawn, dim=1)

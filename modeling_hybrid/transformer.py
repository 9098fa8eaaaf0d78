"""The pre-norm transformer layer that encoder and decoder are stacks of.

Shape letters: B batch, T positions, D hidden size, H heads.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_hybrid import HybridConfig


def eager_attention_forward(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """Attention written out, for `attn_implementation="eager"`: query (B, H, T, D/H) -> (B, T, H, D/H), weights."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class HybridAttention(nn.Module):
    def __init__(self, config: HybridConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch_size, length, _ = hidden_states.shape
        qkv = self.qkv_proj(hidden_states).view(batch_size, length, 3, -1, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(batch_size, length, -1)), weights


class HybridMLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str):
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[hidden_act]
        self.down_proj = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.up_proj(hidden_states)))


class HybridLayer(GradientCheckpointingLayer):
    def __init__(self, config: HybridConfig, layer_idx: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = HybridAttention(config, layer_idx)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = HybridMLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        attended, _ = self.attention(self.attention_norm(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class Modulation(nn.Linear):
    """
    A condition (..., D) -> scale, shift and weight (..., D) of the attention, then of the feed-forward part; all zero
    before it has learnt.
    """

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 6 * hidden_size)

    def start_weights(self):
        init.zeros_(self.weight)
        init.zeros_(self.bias)

    def forward(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return super().forward(nn.functional.silu(condition)).chunk(6, dim=-1)


class HybridToldLayer(HybridLayer):
    """
    A layer that a condition (B, 1, D) or (D,) scales and shifts after each norm, and weighs before each sum: the
    adaptive norm of DiT (Peebles and Xie 2022, arXiv 2212.09748, section 3.2), whose weights start at zero, not at one.
    """

    def __init__(self, config: HybridConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.modulation = Modulation(config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        scale, shift, weight, mlp_scale, mlp_shift, mlp_weight = self.modulation(condition)
        normed = self.attention_norm(hidden_states) * (1 + scale) + shift
        attended, _ = self.attention(normed, attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(attended) * (1 + weight)
        normed = self.mlp_norm(hidden_states) * (1 + mlp_scale) + mlp_shift
        return hidden_states + self.dropout(self.mlp(normed)) * (1 + mlp_weight)


class HybridStack(nn.Module):
    """
    Consecutive layers and a final norm: (B, T, D) -> (B, T, D). The encoder is one stack, the decoder another, whose
    layers may be told a condition.
    """

    def __init__(
        self, config: HybridConfig, num_layers: int, first_layer_idx: int, layer: type[HybridLayer] = HybridLayer
    ):
        super().__init__()
        self.layers = nn.ModuleList([layer(config, first_layer_idx + i) for i in range(num_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return self.norm(hidden_states)

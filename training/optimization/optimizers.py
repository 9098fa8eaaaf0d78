"""AdamW and its schedule: one for the sum of the losses, or one for each loss."""

import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from modeling_hybrid import HybridForPreTraining

from ..config import OptimizationConfig


def build_optimizers(
    model: HybridForPreTraining, optimization: OptimizationConfig, is_sharded: bool = False
) -> list[torch.optim.Optimizer]:
    """One for the sum of the losses; or one for each, the generative and the contrastive, with its weight as a rate."""
    groups = parameter_groups(model, optimization)
    if is_sharded:
        groups = separate_replicated(groups, model)
    weights = [1.0]
    if optimization.separate_moments:
        weights = [model.config.generative_weight, model.config.contrastive_weight]
    return [
        torch.optim.AdamW(
            [group | {"lr": weight * group["lr"]} for group in groups], betas=tuple(optimization.betas), fused=True
        )
        for weight in weights
    ]


def parameter_groups(model: HybridForPreTraining, optimization: OptimizationConfig) -> list[dict]:
    """
    Weight decay on matrices only: not on biases, norms and embeddings. Decoder and head, which features do not pass
    through, may have a rate of their own.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.dim() >= 2 and id(parameter) not in embeddings and "position" not in name
        is_decoder = name.startswith(("decoder.", "depth_head."))
        rate = optimization.learning_rate * (optimization.decoder_rate_factor if is_decoder else 1.0)
        groups.setdefault((rate, is_matrix), []).append(parameter)
    return [
        {"params": groups[key], "lr": key[0], "weight_decay": optimization.weight_decay if key[1] else 0.0}
        for key in sorted(groups, reverse=True)
    ]


def separate_replicated(groups: list[dict], model: HybridForPreTraining) -> list[dict]:
    """The same groups, without those parameters that FSDP does not shard among sharded ones."""
    of_objective = {id(parameter) for parameter in model.objective.parameters()}
    split = []
    for group in groups:
        for is_replicated in (False, True):
            chosen = [p for p in group["params"] if (id(p) in of_objective) == is_replicated]
            split += [group | {"params": chosen}] if chosen else []
    return split


def build_schedule(
    optimizer: torch.optim.Optimizer, optimization: OptimizationConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then half a cosine down to a share of the rate."""
    return get_cosine_with_min_lr_schedule_with_warmup(
        optimizer,
        optimization.num_warmup_steps,
        optimization.num_steps,
        min_lr_rate=optimization.final_learning_rate_share,
    )

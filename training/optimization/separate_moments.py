"""
An optimizer for each loss, so that neither sets the pace of the other.

Adam divides a gradient by its running size. Of a sum of two losses it divides by the size of the sum, so that a noisy
contrastive gradient slows the likelihood down, however well the two agree. With moments of its own each loss moves the
weights as far as it would alone, times its weight (`model.generative_weight`, `model.contrastive_weight`). Weights that
both losses reach decay with both.
"""

import torch
from accelerate import Accelerator

from modeling_hybrid import HybridForPreTraining
from modeling_hybrid.pretraining_hybrid import HybridForPreTrainingOutput

from .gradients import average_gradients, gradients_of_losses


def separate_steps(
    accelerator: Accelerator,
    model: HybridForPreTraining,
    optimizers: list[torch.optim.Optimizer],
    inputs: dict[str, torch.Tensor],
    max_gradient_norm: float,
) -> tuple[HybridForPreTrainingOutput, dict[str, torch.Tensor]]:
    """
    One step of the optimizer of each loss, along gradients taken at the same weights, averaged over the processes and
    clipped each for itself.

    Args:
        model: the bare model, not its distributed wrapper.
        optimizers: of the generative and of the contrastive loss; both hold every parameter.
        inputs: the keyword arguments of the model's `forward`.

    Returns:
        The model's output, and the norms of both gradients before clipping, "gradient_norm" (of the generative loss)
        and "contrastive_gradient_norm".
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with accelerator.autocast():
        output, gradients = gradients_of_losses(model, inputs, parameters)
    norms = []
    for optimizer, of_loss in zip(optimizers, gradients, strict=True):
        for parameter, gradient in zip(parameters, of_loss, strict=True):
            parameter.grad = gradient
        average_gradients(accelerator, parameters)
        norms.append(accelerator.clip_grad_norm_(parameters, max_gradient_norm))
        optimizer.step()
        optimizer.zero_grad()
    return output, dict(zip(("gradient_norm", "contrastive_gradient_norm"), norms, strict=True))

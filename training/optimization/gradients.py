"""The gradient of each loss for itself, and gradients that are shared by processes."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator

from modeling_hybrid import HybridForPreTraining
from modeling_hybrid.pretraining_hybrid import HybridForPreTrainingOutput


# One gradient for each parameter, `None` where the loss does not reach it.
Gradients = tuple[torch.Tensor | None, ...]


def gradients_of_losses(
    model: HybridForPreTraining, inputs: dict[str, torch.Tensor], parameters: list[torch.nn.Parameter]
) -> tuple[HybridForPreTrainingOutput, tuple[Gradients, Gradients]]:
    """What `model` gives for `inputs`, and the gradients of the generative and of the contrastive loss, unweighted."""
    output = model(**inputs)
    generative = torch.autograd.grad(output.generative_loss, parameters, retain_graph=True, allow_unused=True)
    contrastive = torch.autograd.grad(output.contrastive_loss, parameters, allow_unused=True)
    return output, (generative, contrastive)


def gradient_cosine(model: HybridForPreTraining, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """
    Cosine of the gradients of both losses with respect to the parts of the encoder that both reach: 1 where they agree,
    below 0 where one undoes the other. `None` where there is one loss only.

    Args:
        inputs: what `model` takes; `pixel_values` are (V, B, C, H, W).
    """
    if not model.config.has_both_losses or len(inputs["pixel_values"]) < model.objective.min_views:
        return None
    parameters = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        _, gradients = gradients_of_losses(model, inputs, parameters)
    shared = [pair for pair in zip(*gradients, strict=True) if all(part is not None for part in pair)]
    rows = (torch.cat([part.flatten() for part in of_loss]) for of_loss in zip(*shared, strict=True))
    return torch.nn.functional.cosine_similarity(*rows, dim=0)


def average_gradients(accelerator: Accelerator, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Over the processes, in one message; for a model that is not called through its distributed wrapper."""
    if accelerator.num_processes == 1:
        return
    reached = [parameter for parameter in parameters if parameter.grad is not None]
    mean = accelerator.reduce(torch.cat([parameter.grad.flatten() for parameter in reached]), "mean")
    for parameter, part in zip(reached, mean.split([parameter.numel() for parameter in reached]), strict=True):
        parameter.grad = part.view_as(parameter)

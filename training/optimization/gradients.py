"""The gradient of each loss for itself, and gradients that are shared by processes."""

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from modeling_hybrid import HybridForPreTraining
from modeling_hybrid.pretraining_hybrid import HybridForPreTrainingOutput


# One gradient for each parameter, `None` where the loss does not reach it.
Gradients = tuple[torch.Tensor | None, ...]


def gradients_of_losses(
    model: HybridForPreTraining, inputs: dict[str, torch.Tensor], parameters: list[torch.nn.Parameter]
) -> tuple[HybridForPreTrainingOutput, tuple[Gradients, Gradients]]:
    """What `model` gives for `inputs`, and the gradients of the generative and of the contrastive loss, unweighted."""
    output = model(**inputs)
    generative = gradient(model, output.generative_loss, parameters, retain_graph=True)
    contrastive = gradient(model, output.contrastive_loss, parameters)
    return output, (generative, contrastive)


def gradient(
    model: HybridForPreTraining, loss: torch.Tensor, parameters: list[torch.nn.Parameter], retain_graph: bool = False
) -> Gradients:
    """Of this process alone; with FSDP, of all of them in the mean. Those that are in place are lost then."""
    if not isinstance(model, FSDPModule):
        return torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    # The graph holds gathered copies of the parameters, whose gradients come back to them only by `backward`.
    loss.backward(retain_graph=retain_graph)
    found = tuple(parameter.grad for parameter in parameters)
    model.zero_grad()
    return found


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
    one, other = zip(*shared, strict=True)
    return _inner(one, other) / (_inner(one, one) * _inner(other, other)).sqrt().clamp(min=1e-12)


def _inner(one: Gradients, other: Gradients) -> torch.Tensor:
    return whole(sum((a * b).sum() for a, b in zip(one, other, strict=True)))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose parts lie on several processes, on each of them; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def backward(
    accelerator: Accelerator, model: torch.nn.Module, loss: torch.Tensor, is_last: bool, retain_graph: bool = False
) -> None:
    """
    Add the gradient of a loss that was not computed by a call of the wrapped model: of a chunk of a batch, or of one of
    two losses.

    Args:
        model: as Accelerate has wrapped it.
        is_last: whether the gradients are complete with it; if an optimizer step is due, they are averaged over the
            processes then, by DDP in its buckets while the pass goes on. FSDP averages every gradient at once.
    """
    shares = is_last and accelerator.sync_gradients
    if shares and isinstance(model, DistributedDataParallel):
        # What its `forward` does: await the gradients of all parameters that the loss reaches.
        model.reducer.prepare_for_backward([loss])
    accelerator.backward(loss, retain_graph=retain_graph)
    if shares:
        average_replicated(accelerator, model)


def average_replicated(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """The gradients that FSDP leaves alone: those of the objective, whose few parameters every process holds."""
    if not isinstance(model, FSDPModule):
        return
    for parameter in model.objective.parameters():
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")

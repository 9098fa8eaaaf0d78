"""
A large contrastive batch in the memory of a small one, with the same gradient (GradCache, Gao et al. 2021, arXiv
2101.06983).

Shape letters: V views, B images of the batch, of which a chunk holds some.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from modeling_hybrid import HybridForPreTraining
from modeling_hybrid.pretraining_hybrid import HybridForPreTrainingOutput

from ..hardware import RandomState, random_state, set_random_state
from .gradients import backward


def cached_backward(
    accelerator: Accelerator, model: torch.nn.Module, inputs: dict[str, torch.Tensor], chunk_size: int
) -> HybridForPreTrainingOutput:
    """
    One forward and backward pass over a batch, `chunk_size` images in memory at a time ([`losses_of_chunks`]).

    Gradients are added to those that are there, and averaged over the processes where an optimizer step is due.

    Args:
        model: as Accelerate has wrapped it.

    Returns:
        The losses, likelihoods and telemetry that `forward` gives, without gradient.
    """
    bare, output = accelerator.unwrap_model(model), HybridForPreTrainingOutput(loss=0.0)
    weights = bare.config.generative_weight, bare.config.contrastive_weight
    for *losses, is_last in losses_of_chunks(accelerator, bare, inputs, chunk_size, output):
        parts = zip(weights, losses, strict=True)
        backward(accelerator, model, sum(weight * loss for weight, loss in parts if loss is not None), is_last)
    return output


def losses_of_chunks(
    accelerator: Accelerator,
    model: HybridForPreTraining,
    inputs: dict[str, torch.Tensor],
    chunk_size: int,
    output: HybridForPreTrainingOutput,
) -> Iterator[tuple[torch.Tensor | None, torch.Tensor | None, bool]]:
    """
    A scalar for each loss and each chunk of a batch, and whether the chunk is the last. Summed over the chunks, their
    gradients are those of the generative and of the contrastive loss of the batch; `None` for a loss that is switched
    off.

    First every chunk is represented without gradient; the objective reads all of them, and finds the gradient of each
    representation. Then every chunk is represented again, with the random state it had before (dropout draws the same),
    and takes these gradients back to the weights, together with its share of the likelihood.

    Args:
        model: the bare model, not its distributed wrapper.
        inputs: the keyword arguments of the model's `forward`.
        chunk_size: images of a chunk, which is let go before the next one.
        output: filled with the losses, likelihoods and telemetry of `forward`, without gradient.
    """
    config, view_kinds = model.config, inputs["view_kinds"]
    chunks = inputs["pixel_values"].split(chunk_size, dim=1)
    batch_size = inputs["pixel_values"].shape[1]
    first = None
    if config.has_contrast:
        first = _first_pass(accelerator, model, inputs, chunks)
        output.contrastive_loss, output.telemetry = first.contrastive_loss, first.telemetry
        output.loss = output.loss + config.contrastive_weight * first.contrastive_loss

    nll = []
    for i, chunk in enumerate(chunks):
        if first is not None:
            set_random_state(first.random_states[i], chunk.device)
        generative = contrastive = None
        is_last = i == len(chunks) - 1
        with accelerator.autocast():
            views = model.represent(chunk, view_kinds)
            if config.has_decoder:
                generative_loss, nll_of_chunk = model.score(views)
                generative = generative_loss * (chunk.shape[1] / batch_size)
                nll.append(nll_of_chunk)
                output.loss = output.loss + config.generative_weight * generative.detach()
                output.generative_loss = generative.detach() + (0 if i == 0 else output.generative_loss)
        if first is not None:
            contrastive = chunk.new_zeros(())
            for name, of_chunks in first.of_representations.items():
                contrastive = contrastive + (getattr(views.objective_batch, name) * of_chunks[i]).sum()
            for name, gradient in first.of_objective.items() if is_last else ():
                contrastive = contrastive + (model.objective.get_parameter(name) * gradient).sum()
        yield generative, contrastive, is_last
    if nll:
        output.nll = torch.cat(nll, dim=1)


@dataclass
class _FirstPass:
    """
    Args:
        contrastive_loss: (), without gradient.
        telemetry: scalars by name.
        of_representations: gradients of the representations, by name, one for each chunk.
        of_objective: gradients of the parameters of the objective, by name.
        random_states: before each chunk.
    """

    contrastive_loss: torch.Tensor
    telemetry: dict[str, torch.Tensor]
    of_representations: dict[str, tuple[torch.Tensor, ...]]
    of_objective: dict[str, torch.Tensor]
    random_states: list[RandomState]


def _first_pass(
    accelerator: Accelerator,
    model: HybridForPreTraining,
    inputs: dict[str, torch.Tensor],
    chunks: tuple[torch.Tensor, ...],
) -> _FirstPass:
    """The objective on the whole batch, of which no chunk is held longer than it takes to represent it."""
    view_kinds, random_states, parts, keys = inputs["view_kinds"], [], [], []
    for chunk in chunks:
        random_states.append(random_state(chunk.device))
        # A context for each chunk: autocast keeps the weights it has cast, here those without gradient.
        with torch.no_grad(), accelerator.autocast():
            views = model.represent(chunk, view_kinds)
            parts.append(replace(views.objective_batch, view_kinds=None).given())
            keys.append({name: part for name, part in model.keys(views).items() if part is not None})

    def join(chunked: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.cat([parts[name] for parts in chunked], dim=1) for name in chunked[0]}

    leaves = {name: part.requires_grad_() for name, part in join(parts).items()}
    learnt = {name: parameter for name, parameter in model.objective.named_parameters() if parameter.requires_grad}
    others = {name: inputs[name] for name in ("labels", "sample_ids", "boxes", "teacher") if name in inputs}
    batch = model.objective.Batch(**leaves, **join(keys), **others, view_kinds=view_kinds)
    loss, telemetry = model.objective(batch)
    found = torch.autograd.grad(loss, [*leaves.values(), *learnt.values()], allow_unused=True)
    found = {name: gradient for name, gradient in zip([*leaves, *learnt], found, strict=True) if gradient is not None}
    return _FirstPass(
        loss.detach(),
        telemetry,
        {name: found[name].split(chunks[0].shape[1], dim=1) for name in leaves if name in found},
        {name: found[name] for name in learnt if name in found},
        random_states,
    )

"""
An optimizer for each loss, so that neither sets the pace of the other.

Adam divides a gradient by its running size. Of a sum of two losses it divides by the size of the sum, so that a noisy
contrastive gradient slows the likelihood down, however well the two agree. With moments of its own each loss moves the
weights as far as it would alone, times its weight (`model.generative_weight`, `model.contrastive_weight`). Weights that
both losses reach decay with both.
"""

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule

from modeling_hybrid.pretraining_hybrid import HybridForPreTrainingOutput

from .gradient_cache import losses_of_chunks
from .gradients import backward, gradient, whole


class SeparateSteps:
    """
    One step of the optimizer of each loss, along gradients taken at the same weights, averaged over the processes and
    clipped each for itself. Of several passes the gradients are averaged first.

    Args:
        model: as Accelerate has wrapped it.
        optimizers: of the generative and of the contrastive loss; both hold every parameter.
        chunk_size: images in memory at a time ([`losses_of_chunks`]); 0 for the whole batch.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizers: list[torch.optim.Optimizer],
        max_gradient_norm: float,
        chunk_size: int = 0,
    ):
        self.accelerator, self.model, self.optimizers = accelerator, model, optimizers
        self.max_gradient_norm, self.chunk_size = max_gradient_norm, chunk_size
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Of each loss and each parameter, `None` where the loss does not reach it.
        self.sums: list[list[torch.Tensor | None]] = self._nothing()

    def __call__(self, inputs: dict[str, torch.Tensor]) -> tuple[HybridForPreTrainingOutput, dict[str, torch.Tensor]]:
        """
        A pass, and the steps where they are due.

        Args:
            inputs: the keyword arguments of the model's `forward`.

        Returns:
            The model's output, and after the steps the norms of both gradients before clipping, "gradient_norm" (of the
            generative loss) and "contrastive_gradient_norm".
        """
        accelerator, model = self.accelerator, self.accelerator.unwrap_model(self.model)
        if self.chunk_size > 0:
            output = HybridForPreTrainingOutput(loss=0.0)
            for *losses, is_last in losses_of_chunks(accelerator, model, inputs, self.chunk_size, output):
                self._add(losses, is_last)
        else:
            with accelerator.autocast():
                output = model(**inputs)
            self._add((output.generative_loss, output.contrastive_loss))
        if not accelerator.sync_gradients:
            return output, {}
        norms = []
        for optimizer, of_loss in zip(self.optimizers, self.sums, strict=True):
            self._put(of_loss)
            norms.append(whole(accelerator.clip_grad_norm_(self.parameters, self.max_gradient_norm)))
            optimizer.step()
            optimizer.zero_grad()
        self.sums = self._nothing()
        return output, dict(zip(("gradient_norm", "contrastive_gradient_norm"), norms, strict=True))

    def _nothing(self) -> list[list[None]]:
        return [[None] * len(self.parameters) for _ in self.optimizers]

    def _add(self, losses: tuple[torch.Tensor, torch.Tensor], is_last: bool = True) -> None:
        if isinstance(self.model, FSDPModule):
            # Else the gradients of several passes would wait in one place, those of both losses together.
            self.model.set_requires_gradient_sync(True)
        for i, (loss, sums) in enumerate(zip(losses, self.sums, strict=True)):
            if is_last and self.accelerator.sync_gradients:
                self._put(sums)
                backward(self.accelerator, self.model, loss, is_last, retain_graph=i == 0)
                sums[:] = [parameter.grad for parameter in self.parameters]
                self._put([None] * len(sums))
                continue
            # Not by `backward`: DDP would take what it reaches for a part of the next gradient that it averages.
            scaled = loss / self.accelerator.gradient_accumulation_steps
            found = gradient(self.accelerator.unwrap_model(self.model), scaled, self.parameters, retain_graph=i == 0)
            for j, part in enumerate(found):
                if part is not None:
                    sums[j] = part if sums[j] is None else sums[j] + part

    def _put(self, gradients: list[torch.Tensor | None]) -> None:
        for parameter, of_parameter in zip(self.parameters, gradients, strict=True):
            parameter.grad = of_parameter

"""What the tests of objectives share: batches with everything in them, and one small instance of each objective."""

import inspect

import torch

from modeling_hybrid.objectives import Objective, ObjectiveBatch, objective_class
from modeling_hybrid.objectives.base import AUGMENTED, CLEAN, LOCAL


DIM, NUM_SAMPLES = 8, 40
# Parts of a batch that gradients flow through.
LEARNT = ("projections", "patch_projections", "decoder_states", "pooled")

# Sizes that fit a handful of samples, where the defaults do not.
ARGUMENTS: dict[str, dict] = {
    "isogclr": {"min_temperature": 0.01},
    "mochi": {"queue_size": 32, "num_hard": 4, "num_mixed": 3, "num_query_mixed": 2},
    "nnclr": {"queue_size": 32},
    "sep_clr": {"code_size": 3},
    "simlap": {"max_classes": 3, "embedding_size": 6},
    "swav": {"num_prototypes": 5, "queue_size": 32},
}


def make(name: str, **arguments) -> Objective:
    """The objective called `name`, small, with arguments overridden by keyword."""
    known = inspect.signature(objective_class(name)).parameters
    given = {"projection_dim": DIM, "hidden_size": 5, "pooled_size": 5, "teacher_size": 5, "num_samples": NUM_SAMPLES}
    small = {key: value for key, value in given.items() if key in known} | ARGUMENTS.get(name, {})
    torch.manual_seed(0)
    return objective_class(name)(**small | arguments)


def unit_rows(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def draw_batch(
    kinds: tuple[int, ...] = (CLEAN, AUGMENTED, LOCAL),
    batch_size: int = 6,
    num_patches: int = 4,
    dtype: torch.dtype = torch.float64,
) -> ObjectiveBatch:
    """A random batch with every part; those that a model makes by its weights want gradients."""
    shape = (len(kinds), batch_size)
    codes = torch.randint(3, (*shape, num_patches, 2))
    corners = torch.rand(*shape, 2, 2, dtype=dtype).sort(dim=2).values
    return ObjectiveBatch(
        projections=unit_rows(*shape, DIM, dtype=dtype).requires_grad_(),
        keys=unit_rows(*shape, DIM, dtype=dtype),
        view_kinds=torch.tensor(kinds),
        labels=torch.randint(3, (batch_size,)),
        sample_ids=torch.randperm(NUM_SAMPLES)[:batch_size],
        patch_projections=unit_rows(*shape, num_patches, DIM, dtype=dtype).requires_grad_(),
        patch_keys=unit_rows(*shape, num_patches, DIM, dtype=dtype),
        boxes=corners.flatten(2),
        decoder_states=torch.randn(*shape, num_patches, 5, dtype=dtype).requires_grad_(),
        pixel_values=2 * torch.rand(*shape, 1, 4, 4, dtype=dtype) - 1,
        codes=codes,
        patch_embeddings=unit_rows(3, 3, 5, dtype=dtype)[codes[..., 0], codes[..., 1]],
        pooled=torch.randn(*shape, 5, dtype=dtype).requires_grad_(),
        teacher=torch.randn(batch_size, 5, dtype=dtype),
    )


def value_and_gradient(function, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a function of rows, at these."""
    rows = rows.detach().clone().requires_grad_()
    value = function(rows)
    value.backward()
    return value.detach(), rows.grad


def change(batch: ObjectiveBatch, function) -> ObjectiveBatch:
    """The batch of `function(name, part)` for each part that is there."""
    return ObjectiveBatch(**{name: function(name, part) for name, part in batch.given().items()})


def take_samples(batch: ObjectiveBatch, index: torch.Tensor | slice) -> ObjectiveBatch:
    """The batch with its samples reordered or selected, as leaves of their own."""

    def take(name, part):
        if name == "view_kinds":
            return part
        part = part.detach()[index] if name in ("labels", "sample_ids", "teacher") else part.detach()[:, index]
        return part.clone().requires_grad_(name in LEARNT)

    return change(batch, take)


def gradients(batch: ObjectiveBatch, objective: Objective | None = None) -> dict[str, torch.Tensor]:
    """{name: gradient} of the parts of the batch and the parameters of the objective that the loss has reached."""
    leaves = {**batch.given(), **(dict(objective.named_parameters()) if objective else {})}
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

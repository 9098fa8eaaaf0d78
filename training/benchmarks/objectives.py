"""
Speed and memory of the objectives beside plain ones, which hold the whole matrix of similarities.

    python -m training.benchmarks.objectives [--threads 2] [--repeats 5] [--batch-sizes 256 1024 4096] [--only NAME ...]
        [--max-plain-gib 4] [--large] [--output objectives.json]

What is run is one forward and backward pass of the objective alone, in training mode, with its defaults, on the CPU in
fp32: `Objective.loss`, and its gradients in the rows and in the parameters of the objective. Rows are random, of length
one and width D = 128, two views of B samples; DEMI and SwAV get a local view too. There are 10 labels, 64 patches to a
view, and queues are full. `moco` is `mochi` without mixtures.

A plain objective (`PLAIN`) computes the same value from a matrix of similarities by autograd, as the repositories of
the papers do. It reads the queue but does not write to it. Where the package lightly is installed, its losses of the
same value run too. Plain ones and those of lightly are left out where the matrices of the plain one take more than
`--max-plain-gib` GiB.

    NAME_B_HOW_ms           Median milliseconds; HOW is `ours`, `plain` or `lightly`, or `whole` for ours with the
                            telemetry that every objective reports. They take turns within one process (A B A B ...),
                            after a warm-up.
    NAME_B_ratio            Milliseconds, ours / plain.
    NAME_B_HOW_mib          Peak memory of all but `whole`, each in a fresh process: the most that a pass adds to what
                            the process holds once rows and objective exist and a small batch has passed. It includes
                            the gradients.
    NAME_memory_32768_mib   The same for ours at B = 32,768, of those in `TILED`; with `--large`, a minute each.

`--output` is one flat JSON object: the setting (`cpu`, `threads`, `repeats`, `torch`, `transformers`) and the values;
`_mib` is 2^20 bytes. `TARGETS` says what the project aims at.

Shape letters: V views, B samples, D width, S patches, K places of the queue or prototypes.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from modeling_hybrid.objectives import OBJECTIVES, Objective, ObjectiveBatch, objective_class
from modeling_hybrid.objectives.base import AUGMENTED, CLEAN, LOCAL

from ..command import command, parser_of
from ..reports.reported import table as markdown_table
from .measure import Targets, add_options, added_at_peak, begin, in_fresh_process, interleaved, table, write
from .peers import nt_xent


# Row of the table -> name and arguments of the objective.
CASES: dict[str, tuple[str, dict]] = {name: (name, {}) for name in OBJECTIVES}
CASES["moco"] = ("mochi", {"num_mixed": 0, "num_query_mixed": 0})

WITH_LOCAL_VIEW = ("demi", "swav")
DIM, NUM_LABELS, NUM_PATCHES = 128, 10, 64
WARM_UP_BATCH = 32

# Those whose memory does not grow with the square of the batch, and the batch that shows it.
TILED, LARGE_BATCH = ("info_nce", "clip", "decoupled", "sup_con"), 32768

TARGETS: Targets = {f"{name}_4096_ratio": (0.0, 1.5) for name in TILED}
TARGETS |= {f"{name}_memory_{LARGE_BATCH}_mib": (0.0, 190.7) for name in TILED}  # 200 MB

Loss = Callable[[Objective, ObjectiveBatch], torch.Tensor]


def ours(objective: Objective, batch: ObjectiveBatch) -> torch.Tensor:
    return objective.loss(batch)[0]


def whole(objective: Objective, batch: ObjectiveBatch) -> torch.Tensor:
    return objective(batch)[0]


def plain_info_nce(objective, batch):
    return nt_xent(batch.projections, objective.temperature)


def plain_clip(objective, batch):
    first, second = batch.projections
    logits = objective.log_scale.exp() * first @ second.T
    target = torch.arange(len(logits))
    return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2


def plain_sup_con(objective, batch):
    rows, labels = batch.projections.flatten(0, 1), batch.labels.repeat(2)
    itself = torch.eye(len(rows), dtype=torch.bool)
    positives = (labels[:, None] == labels) & ~itself
    shares = (rows @ rows.T / objective.temperature).masked_fill(itself, -torch.inf).log_softmax(dim=1)
    return -(shares.masked_fill(~positives, 0).sum(dim=1) / positives.sum(dim=1)).mean()


def plain_decoupled(objective, batch):
    first, second = batch.projections
    rows = torch.cat([first, second])
    same_sample = torch.eye(len(first), dtype=torch.bool).repeat(2, 2)
    negatives = (rows @ rows.T / objective.temperature).masked_fill(same_sample, -torch.inf)
    return negatives.logsumexp(dim=1).mean() - (first * second).sum(dim=1).mean() / objective.temperature


def plain_mv_info_nce(objective, batch):
    rows = batch.projections
    similarities = torch.einsum("aid,bjd->abij", rows, rows) / objective.temperature
    same_view = torch.eye(len(rows), dtype=torch.bool)[:, :, None, None]
    similarities = similarities.masked_fill(same_view, -torch.inf)
    positives = similarities.diagonal(dim1=2, dim2=3).logsumexp(dim=(0, 1))
    return (similarities.logsumexp(dim=(0, 1, 3)) - positives).mean()


def plain_mv_dhel(objective, batch):
    first, second = rows = batch.projections
    itself = torch.eye(len(first), dtype=torch.bool)
    negatives = (rows @ rows.mT / objective.temperature).masked_fill(itself, -torch.inf)
    return (negatives.logsumexp(dim=2).sum(dim=0) - (first * second).sum(dim=1) / objective.temperature).mean()


def plain_siglip(objective, batch):
    first, second = batch.projections
    logits = objective.log_scale.exp() * first @ second.T + objective.bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -nn.functional.logsigmoid(signs * logits).sum() / len(logits)


def plain_cacr(objective, batch):
    first, second = batch.projections
    costs = 2 - 2 * first @ second.T
    itself = torch.eye(len(costs), dtype=torch.bool)
    logits = (-objective.t_neg * costs).masked_fill(itself, -torch.inf)
    repulsion = sum((logits.softmax(dim) * costs).sum(dim).mean() for dim in (0, 1)) / 2
    return objective.alpha * costs.diagonal().mean() - objective.beta * repulsion


def plain_nnclr(objective, batch):
    queued, target = objective.queue.rows, torch.arange(batch.projections.shape[1])

    def one_way(rows, others):
        nearest = queued[(rows.detach() @ queued.T).argmax(dim=1)]
        return nn.functional.cross_entropy(nearest @ others.T / objective.temperature, target)

    first, second = batch.projections
    return (one_way(first, second) + one_way(second, first)) / 2


def plain_moco(objective, batch):
    queued, target = objective.queue.rows, torch.zeros(batch.projections.shape[1], dtype=torch.long)

    def one_way(queries, keys):
        similarities = torch.cat([(queries * keys).sum(dim=1, keepdim=True), queries @ queued.T], dim=1)
        return nn.functional.cross_entropy(similarities / objective.temperature, target)

    return (one_way(batch.projections[0], batch.keys[1]) + one_way(batch.projections[1], batch.keys[0])) / 2


def plain_swav(objective, batch):
    scores = batch.projections @ objective.prototypes.T
    predictions = (scores / objective.temperature).log_softmax(dim=2)

    @torch.no_grad()
    def sinkhorn(scores):
        codes = (scores / objective.epsilon).exp().T
        codes /= codes.sum()
        for _ in range(objective.num_iterations):
            codes /= len(codes) * codes.sum(dim=1, keepdim=True)
            codes /= codes.shape[1] * codes.sum(dim=0, keepdim=True)
        return (codes * codes.shape[1]).T

    def one_way(view, others):
        return -(sinkhorn(scores[view]) * predictions[others]).sum(dim=2).mean()

    return (one_way(0, [1, 2]) + one_way(1, [0, 2])) / 2


@dataclass(frozen=True)
class Plain:
    """
    A plain objective, of the views that [`draw`] gives it, and how many fp32 matrices of B x B it holds at its peak.
    """

    loss: Loss
    num_matrices: int

    def gib(self, batch_size: int) -> float:
        return self.num_matrices * 4 * batch_size**2 / 2**30


PLAIN = {
    "info_nce": Plain(plain_info_nce, 13),
    "clip": Plain(plain_clip, 5),
    "sup_con": Plain(plain_sup_con, 15),
    "decoupled": Plain(plain_decoupled, 17),
    "mv_info_nce": Plain(plain_mv_info_nce, 16),
    "mv_dhel": Plain(plain_mv_dhel, 8),
    "siglip": Plain(plain_siglip, 7),
    "cacr": Plain(plain_cacr, 8),
    "nnclr": Plain(plain_nnclr, 8),
    "moco": Plain(plain_moco, 0),
    "swav": Plain(plain_swav, 0),
}


def lightly_losses() -> dict[str, Loss]:
    """Those of the losses of lightly that are the same as ours; none where it is not installed."""
    try:
        from lightly.loss import NTXentLoss, SwaVLoss
    except ImportError:
        return {}

    def swav(objective, batch):
        first, second, local = batch.projections @ objective.prototypes.T
        loss = SwaVLoss(objective.temperature, objective.num_iterations, objective.epsilon)
        return loss([first, second], [local]).squeeze()

    return {
        "info_nce": lambda objective, batch: NTXentLoss(objective.temperature)(*batch.projections),
        "swav": swav,
    }


def losses(name: str) -> dict[str, Loss]:
    """What computes the value of a case, by how: `ours`, and if there are, `plain` and `lightly`."""
    found = {"ours": ours}
    if name in PLAIN:
        found["plain"] = PLAIN[name].loss
    if name in (of_lightly := lightly_losses()):
        found["lightly"] = of_lightly[name]
    return found


def unit_rows(*shape: int) -> torch.Tensor:
    rows = torch.randn(shape)
    return rows.div_(rows.norm(dim=-1, keepdim=True))


def draw(name: str, batch_size: int) -> tuple[Objective, ObjectiveBatch]:
    """The objective of a case, and a random batch of what it needs; the same at every call."""
    torch.manual_seed(0)
    objective_name, arguments = CASES[name]
    chosen = objective_class(objective_name)
    known = inspect.signature(chosen).parameters
    sizes = dict.fromkeys(("projection_dim", "hidden_size", "pooled_size", "teacher_size"), DIM) | {
        "num_samples": batch_size
    }
    objective = chosen(**{key: size for key, size in sizes.items() if key in known}, **arguments)
    if getattr(objective, "queue", None) is not None:
        objective.queue.enqueue(unit_rows(1, objective.queue.size, DIM))

    kinds = (CLEAN, AUGMENTED, LOCAL) if name in WITH_LOCAL_VIEW else (CLEAN, AUGMENTED)
    shape = (len(kinds), batch_size)
    parts = {
        "projections": lambda: unit_rows(*shape, DIM).requires_grad_(),
        "keys": lambda: unit_rows(*shape, DIM),
        "view_kinds": lambda: torch.tensor(kinds),
        "labels": lambda: torch.randint(NUM_LABELS, (batch_size,)),
        "sample_ids": lambda: torch.arange(batch_size),
        "patch_projections": lambda: unit_rows(*shape, NUM_PATCHES, DIM).requires_grad_(),
        "patch_keys": lambda: unit_rows(*shape, NUM_PATCHES, DIM),
        "boxes": lambda: torch.rand(*shape, 2, 2).sort(dim=2).values.flatten(2),
        "decoder_states": lambda: torch.randn(*shape, NUM_PATCHES, DIM).requires_grad_(),
        "pixel_values": lambda: 2 * torch.rand(*shape, 1, 8, 8) - 1,
        "codes": lambda: (
            torch.arange(batch_size * NUM_PATCHES).view(1, batch_size, NUM_PATCHES, 1).expand(*shape, -1, -1)
        ),
        "patch_embeddings": lambda: unit_rows(1, batch_size, NUM_PATCHES, DIM).expand(*shape, -1, -1),
        "pooled": lambda: torch.randn(*shape, DIM).requires_grad_(),
        "teacher": lambda: torch.randn(batch_size, DIM),
    }
    return objective, ObjectiveBatch(**{part: parts[part]() for part in sorted(objective.needs | {"view_kinds"})})


def forward_and_backward(loss: Loss, objective: Objective, batch: ObjectiveBatch) -> Callable[[], None]:
    """One call: `loss`, and its gradients in the batch and in the parameters of the objective."""
    leaves = [part for part in batch.given().values() if part.requires_grad] + list(objective.parameters())

    def run():
        torch.autograd.grad(loss(objective, batch), leaves)

    return run


def memory(name: str, how: str, batch_size: int, threads: int) -> float:
    """MiB that one pass adds at its peak. Linux only, in a process of its own."""
    torch.set_num_threads(threads)
    loss = losses(name)[how]
    forward_and_backward(loss, *draw(name, WARM_UP_BATCH))()
    return added_at_peak(forward_and_backward(loss, *draw(name, batch_size)))


def compare(name: str, batch_size: int, repeats: int, max_plain_gib: float) -> dict[str, float]:
    """The values of a case at a batch size."""
    objective, batch = draw(name, batch_size)
    found = losses(name)
    if name in PLAIN and PLAIN[name].gib(batch_size) > max_plain_gib:
        found = {"ours": ours}
    runs = {how: forward_and_backward(loss, objective, batch) for how, loss in {**found, "whole": whole}.items()}
    # A small batch takes milliseconds, so a turn is several of them.
    medians = interleaved(runs, repeats, calls=8 if batch_size < 1024 else 1)
    case = f"{name}_{batch_size}"
    values = {f"{case}_{how}_ms": 1e3 * median for how, median in medians.items()}
    if "plain" in medians:
        values[f"{case}_ratio"] = medians["ours"] / medians["plain"]
    for how in found:
        values[f"{case}_{how}_mib"] = in_fresh_process(memory, name, how, batch_size, torch.get_num_threads())
    return values


def markdown(values: dict[str, float], names: list[str], batch_sizes: list[int], max_plain_gib: float) -> str:
    """The values of [`compare`], a line for each case and batch size."""
    hows = ["ours", "plain"] + ["lightly"] * any("_lightly_" in name for name in values)
    columns = [*(f"{how}_ms" for how in hows), "ratio", "whole_ms", *(f"{how}_mib" for how in hows)]
    titles = [column.replace("_", " ").replace("mib", "MiB") for column in columns]

    def cell(name: str, batch_size: int, column: str) -> str:
        value = values.get(f"{name}_{batch_size}_{column}")
        if value is not None:
            return f"{value:.2f}" if column == "ratio" else f"{value:.1f}"
        return f"not run, over {max_plain_gib:g} GiB" if column == "plain_mib" and name in PLAIN else "-"

    rows = [
        [name, str(size), *(cell(name, size, column) for column in columns)] for name in names for size in batch_sizes
    ]
    return markdown_table(["objective", "B", *titles], rows, mark="---:")


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.benchmarks.objectives", __doc__)
    add_options(parser, output="objectives.json", repeats=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES), metavar="NAME")
    parser.add_argument("--max-plain-gib", type=float, default=4.0)
    parser.add_argument("--large", action="store_true", help=f"add the memory at a batch of {LARGE_BATCH}")
    options = parser.parse_args(arguments)
    settings, values = begin(options), {}
    if not lightly_losses():
        print("lightly is not installed: its losses are left out")
    for name in options.only:
        for batch_size in options.batch_sizes:
            print(f"{name}, B = {batch_size}", flush=True)
            values |= compare(name, batch_size, options.repeats, options.max_plain_gib)
    if options.large:
        for name in [name for name in TILED if name in options.only]:
            print(f"{name}, B = {LARGE_BATCH}, memory alone", flush=True)
            peak = in_fresh_process(memory, name, "ours", LARGE_BATCH, options.threads)
            values[f"{name}_memory_{LARGE_BATCH}_mib"] = peak
    print(markdown(values, options.only, options.batch_sizes, options.max_plain_gib))
    print(table({name: values[name] for name in TARGETS if name in values}, TARGETS))
    write(options.output, settings, values)


if __name__ == "__main__":
    sys.exit(main())

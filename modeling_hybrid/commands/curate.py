"""`hybrid curate`: what to look at, and what to throw out, before others learn from a collection."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .batches import Batch, Reader
from .checkpoints import Measured, load, measure
from .findings import COLUMNS, Entry, Section, write
from .looks import Look, Thumbnails, look, oddities
from .options import CheckpointOptions, ComputeOptions, ImageOptions, printable, require, say, verb
from .page import write_page
from .progress import Progress
from .results import Format, require_writable, rows_to
from .sources import Sources


if TYPE_CHECKING:
    import torch

FINDINGS_FILE, PAGE_FILE = "findings.csv", "index.html"
# Fewer images are no group of look-alikes.
_MIN_LOOK_ALIKES = 3
# More images change little in what is usual, and take much memory in double precision.
_ENOUGH = 10_000


@dataclass
class CuratedOptions(ImageOptions):
    limit: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many images, taken from all sources in turn.")
    ] = None
    max_unreadable_share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Broken images are findings; with more of them than this share, it ends with 1."
        ),
    ] = 1.0


@verb
def curate(
    checkpoint: CheckpointOptions,
    images: CuratedOptions,
    compute: ComputeOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of findings.csv and of the page index.html.")],
    near: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            max=1,
            help="Correlation of pixels from which images are near duplicates; .95 to .99, if unset, as "
            "the collection is more or less varied.",
        ),
    ] = None,
    num_shown: Annotated[
        int, typer.Option(min=1, help="Strangest, plainest and busiest images; of all else, what the page shows.")
    ] = 24,
):
    """
    Look through a collection in one pass: exact and near duplicates, leaks (duplicates in several of the sources, such
    as the folders of training and test images), the strangest, plainest and busiest images, broken and odd files, and
    groups of look-alikes.

    Writes findings.csv (finding, group, rank, id, source, value, detail; to keep one image of each group of duplicates,
    drop ranks above 1), and index.html, a page with pictures that needs no network. Ends with 0 whatever is found.
    """
    require("scipy"), require("jinja2")
    sources = Sources(images, in_turn=images.limit is not None)
    require_writable(output / PAGE_FILE)
    model, processor = load(checkpoint, compute)
    reader, seen = Reader(processor, images, compute.batch_size, look), Seen([printable(one) for one in images.sources])
    with Progress(sources.count()) as progress:
        for batch in reader.batches(sources, progress):
            seen.add(batch, measure(model, batch.pixel_values))
    reader.unreadable.check(at_end=True)
    sections = [
        *duplicates(seen, near, model.device),
        strangest(seen, num_shown),
        *by_likelihood(seen, num_shown),
        Section(
            "broken",
            "Broken files",
            "They could not be read, and nothing else was found out about them.",
            entries=[
                Entry(name, seen.sources[source], detail=error) for source, name, error in reader.unreadable.errors
            ],
        ),
        odd(seen),
        Section(
            "ignored",
            "Other files",
            "They lie in the folders, and are no images by their names.",
            entries=[Entry(name, "") for name in sources.ignored],
        ),
    ]
    with rows_to(output / FINDINGS_FILE, Format.csv, COLUMNS) as rows:
        write(sections, rows)
    broken = Counter(source for source, _, _ in reader.unreadable.errors)
    counts = [(name, seen.source_of.count(number), broken[number]) for number, name in enumerate(seen.sources)]
    write_page(output / PAGE_FILE, printable(checkpoint.checkpoint), counts, sections, seen.thumbnails, num_shown)
    say("\n".join(f"{section.title}: {section.count}" for section in sections))
    say(f"{output / PAGE_FILE} shows them, {output / FINDINGS_FILE} lists them all.")


class Seen:
    """
    What is kept of N images that could be read.

    Args:
        sources: their names.

    Attributes:
        names, source_of, looks: lists of N, `source_of` of numbers.
        measured: what the model says, batch by batch.
        thumbnails: of the images, by number.
    """

    def __init__(self, sources: list[str]):
        self.sources = sources
        self.names: list[str] = []
        self.source_of: list[int] = []
        self.looks: list[Look] = []
        self.measured: list[Measured] = []
        self.thumbnails = Thumbnails()

    def add(self, batch: Batch, measured: Measured) -> None:
        for item, seen in zip(batch.items, batch.looks, strict=True):
            self.names.append(item.name)
            self.source_of.append(item.source)
            self.thumbnails.add(seen.thumbnail)
            self.looks.append(replace(seen, thumbnail=b""))
        if measured.strangeness is not None:
            measured.regions = None
        elif measured.regions is None:
            measured.regions = measured.features
        self.measured.append(measured)

    def take(self, name: str) -> "torch.Tensor | None":
        """(N, ...) of a name of [`Measured`], `None` where the checkpoint has none. Only once: memory is let go."""
        import torch

        parts = [getattr(one, name) for one in self.measured]
        for one in self.measured:
            setattr(one, name, None)
        return None if parts[0] is None else torch.cat(parts)

    def entry(self, i: int, value: float | None = None, detail: str = "") -> Entry:
        return Entry(self.names[i], self.sources[self.source_of[i]], value, detail, i)

    def top(self, values: "torch.Tensor", num: int) -> list[Entry]:
        """Those with the highest of N values."""
        return [self.entry(i, values[i].item()) for i in values.argsort(descending=True, stable=True)[:num].tolist()]


def duplicates(seen: Seen, near: float | None, device: "torch.device") -> list[Section]:
    """Leaks, other duplicates, and look-alikes."""
    import numpy as np

    from .duplicates import by_label, joined, look_alikes, near_duplicates

    # Of equal pixels, one is compared with the others: its copies would take the places of its neighbours.
    copies = by_label([one.digest for one in seen.looks])
    say(f"Comparing {len(copies)} images ...")
    with Progress(len(copies)) as progress:
        fingerprints = np.stack([seen.looks[images[0]].fingerprint for images in copies])
        pairs, correlations, near = near_duplicates(fingerprints, near, device, progress)
    families, best = joined(pairs, correlations, len(copies))
    correlation = {image: value for images, value in zip(copies, best, strict=True) for image in images}
    firsts = [copies[family[0]][0] for family in families]
    with Progress(len(firsts)) as progress:
        pairs, cosines = look_alikes(seen.take("features")[firsts].to(device), progress)
    alike, best = joined(pairs, cosines, len(firsts))
    cosine = dict(zip(firsts, best, strict=True))

    def section(finding, title, text, groups: list[list[int]], value="", values=None) -> Section:
        largest_first = sorted(groups, key=len, reverse=True)
        entries = [[seen.entry(i, values and values[i]) for i in group] for group in largest_first]
        return Section(finding, title, text, value, groups=entries)

    exact = [images for images in copies if len(images) > 1]
    close = [sorted(image for n in family for image in copies[n]) for family in families if len(family) > 1]
    sections = []
    for which, where in (("leak", "in more than one source"), ("duplicate", "within one source")):
        of_exact, of_close = (
            [group for group in groups if (len({seen.source_of[i] for i in group}) > 1) == (which == "leak")]
            for groups in (exact, close)
        )
        same = f"The same size and pixels, whatever the files, {where}."
        nearly = f"Pixels that correlate by {near:.3f} or more, {where}; size, light, file or a small shift may differ."
        sections += [
            section(f"exact_{which}", f"Exact {which}s", same, of_exact),
            section(f"near_{which}", f"Near {which}s", nearly, of_close, "correlation", correlation),
        ]
    text = "To the model, each is among the nearest of another. One image stands for all its duplicates."
    groups = [[firsts[n] for n in group] for group in alike if len(group) >= _MIN_LOOK_ALIKES]
    return [*sections, section("look_alike", "Groups of look-alikes", text, groups, "cosine", cosine)]


def strangest(seen: Seen, num: int) -> Section:
    section = Section("strangest", "Strangest images", "The highest scores of the fitted detector.", "strangeness")
    scores = seen.take("strangeness")
    if scores is None and len(seen.names) < 4:
        section.text = "Left out: fewer than four images do not say what is usual."
        return section
    if scores is None:
        section.text = "The least like the others of this collection, by features and likelihood together."
        scores = _by_halves(seen.take("regions"), seen.take("nll"))
    section.entries = seen.top(scores, num)
    return section


def _by_halves(rows: "torch.Tensor", nll: "torch.Tensor | None") -> "torch.Tensor":
    """Scores (N,) of each second image by a score that was fitted on the others: none vouches for itself."""
    import torch

    from modeling_hybrid.strangeness import StrangenessScore

    scores, is_odd = torch.empty(len(rows)), torch.arange(len(rows)) % 2 == 1
    for half in (is_odd, ~is_odd):
        of_half = rows[half], None if nll is None else nll[half]
        others = rows[~half]
        score = StrangenessScore(rows.shape[1], nll is not None).fit(others[:: 1 + len(others) // _ENOUGH], *of_half)
        scores[half] = score(*of_half)["combined"]
    return scores


def by_likelihood(seen: Seen, num: int) -> list[Section]:
    unit, bits = "bits/dim", seen.take("bits_per_dim")
    if bits is None:
        text = "Left out: the checkpoint has no likelihood."
        return [Section("plainest", "Plainest images", text), Section("busiest", "Busiest images", text)]
    plainest = [replace(one, value=-one.value) for one in seen.top(-bits, num)]
    return [
        Section("plainest", "Plainest images", "The fewest bits per dimension: blank, flat, smooth.", unit, plainest),
        Section(
            "busiest", "Busiest images", "The most bits per dimension: fine detail, noise.", unit, seen.top(bits, num)
        ),
    ]


def odd(seen: Seen) -> Section:
    text = "Their files can be read, and differ from the others in kind."
    found = oddities(seen.looks)
    return Section("odd", "Odd files", text, entries=[seen.entry(i, detail=detail) for i, detail in found.items()])

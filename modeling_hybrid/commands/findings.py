"""What `hybrid curate` finds, and the rows that it writes of it."""

from dataclasses import dataclass, field

from .results import Rows


COLUMNS = ("finding", "group", "rank", "id", "source", "value", "detail")


@dataclass
class Entry:
    """
    An image or file of a finding.

    Args:
        name, source: of the image.
        value: what it was found by, in the unit of its section.
        detail: the same in words.
        image: its number among the images that could be read; `None` for others.
    """

    name: str
    source: str
    value: float | None = None
    detail: str = ""
    image: int | None = None


@dataclass
class Section:
    """
    Findings of one kind.

    Args:
        finding: its name in the CSV.
        title, text: for readers.
        value: what the values are.
        entries: in order.
        groups: where images are found together: the same, group by group.
    """

    finding: str
    title: str
    text: str
    value: str = ""
    entries: list[Entry] = field(default_factory=list)
    groups: list[list[Entry]] | None = None

    @property
    def count(self) -> int:
        return len(self.entries if self.groups is None else self.groups)


def write(sections: list[Section], rows: Rows) -> None:
    """One row for each image of each finding; `group` is empty where images are found one by one."""
    for section in sections:
        numbered = [("", section.entries)] if section.groups is None else enumerate(section.groups, start=1)
        for group, entries in numbered:
            for rank, entry in enumerate(entries, start=1):
                rows.write(section.finding, group, rank, entry.name, entry.source, entry.value, entry.detail)

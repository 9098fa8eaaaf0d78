"""The findings of `hybrid curate` as one HTML file: pictures inside, no script, nothing loaded from anywhere."""

from base64 import b64encode
from pathlib import Path

from .findings import Entry, Section
from .looks import Thumbnails
from .results import written_whole


# Of a group.
_NUM_IMAGES = 12


def write_page(
    path: Path,
    checkpoint: str,
    sources: list[tuple[str, int, int]],
    sections: list[Section],
    thumbnails: Thumbnails,
    num_shown: int,
) -> None:
    """
    Args:
        path: of the file.
        checkpoint: what found it all.
        sources: name, number of images and of broken files of each.
        sections: as in the CSV.
        thumbnails: of the images.
        num_shown: how many images of a section, or groups, are shown.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def picture(entry: Entry) -> str:
        content = thumbnails[entry.image]
        kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{b64encode(content).decode()}"

    def short(entry: Entry) -> str:
        """Its source is told beside it."""
        return entry.name.removeprefix(entry.source).lstrip("/#") or entry.name

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("page.html").stream(
        checkpoint=checkpoint,
        sources=sources,
        sections=sections,
        num_shown=num_shown,
        num_images=_NUM_IMAGES,
        picture=picture,
        short=short,
    )
    with written_whole(path) as partial, open(partial, "w", encoding="utf-8") as file:
        page.dump(file)

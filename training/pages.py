"""
The pages of this repository: no number in their tables is typed by hand.

    python -m training.pages [--check] [--picture]

A table of a page stands between two lines,

    <!-- table: NAME FILE ... -->
    <!-- end -->

NAME is one of [`TABLES`], each FILE holds stored results; paths start at the root of the repository. The command writes
every table anew. With `--check` it writes nothing, and ends with 1 where a page is not what its files give.
`--picture` draws the picture at the head of the README as well, out of pictures of the cards.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .benchmarks import tables
from .command import command, parser_of
from .comparison import objectives, systems, table
from .comparison.arms import ARMS, HYBRID
from .comparison.verdict import verdict
from .reports.overview import overview


ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "model_cards/RESULTS.md",
    "model_cards/SYSTEMS.md",
    "modeling_hybrid/CONDITION.md",
    "modeling_hybrid/commands/README.md",
    "modeling_hybrid/objectives/README.md",
    "training/benchmarks/README.md",
    "training/evaluation/README.md",
    "training/pretraining/README.md",
)
PICTURE = "model_cards/overview.png"

# A stored result: what a JSON file holds.
Stored = dict[str, Any]

_TABLE = re.compile(r"^(<!-- table: (\S+) ([^\n]+) -->\n).*?^(<!-- end -->)$", flags=re.DOTALL | re.MULTILINE)


def rewritten(text: str) -> str:
    """
    A page with every table as its files give it.

    Raises:
        ValueError: a table without a known name, a file or an end.
    """

    def write(found: re.Match) -> str:
        first, name, files, last = found.groups()
        if name not in TABLES:
            raise ValueError(f"There is no table {name!r}; the tables are {', '.join(TABLES)}.")
        stored = [json.loads((ROOT / file).read_text()) for file in files.split()]
        return f"{first}\n{TABLES[name](*stored)}\n\n{last}"

    text, num_written = _TABLE.subn(write, text)
    if text.count("\n<!-- table:") != num_written:
        raise ValueError("A line `<!-- table: NAME FILE ... -->` names no file, or no line `<!-- end -->` follows it.")
    return text


def comparison(stored: Stored) -> str:
    return table.table(stored, {name: arm.title for name, arm in ARMS.items()}, HYBRID)


def every_objective(stored: Stored) -> str:
    seeds = ", ".join(map(str, stored["seeds"]))
    split = stored.get("split", "test")
    commit = f" Commit {stored['commit']}; values of single runs were not kept." if "commit" in stored else ""
    return (
        f"{objectives.table(stored['arms'])}\n\nMean ± standard deviation of seeds {seeds}, {split} split; the best "
        f"mean of a column is bold. Command: `{stored['command']}`.{commit}"
    )


def samples(stored: Stored) -> str:
    return objectives.samples(stored["arms"])


TABLES: dict[str, Callable[..., str]] = {
    "comparison": comparison,
    "verdict": verdict,
    "objectives": every_objective,
    "systems": systems.table,
    "samples": samples,
    "peers": tables.beside_peers,
    "speed_of_objectives": tables.of_objectives,
    "gradient_cache": tables.of_chunks,
    "losses": tables.of_losses,
    "scoring": tables.of_scoring,
    "processes": tables.of_processes,
    "streams": tables.of_streams,
}


@command
def main(arguments: list[str]) -> int:
    parser = parser_of("training.pages", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a page differs")
    parser.add_argument("--picture", action="store_true", help=f"draw {PICTURE} as well")
    options = parser.parse_args(arguments)
    differing = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        if (new := rewritten(text)) != text:
            differing.append(page)
            if not options.check:
                (ROOT / page).write_text(new)
    said = "differs from what its files give; run python -m training.pages" if options.check else "is written anew"
    for page in differing:
        print(f"{page} {said}")
    if options.picture and not options.check:
        overview(ROOT / "model_cards").save(ROOT / PICTURE, optimize=True)
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())

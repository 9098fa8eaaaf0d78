"""The pages of the repository, and what is read out of them."""

import re
from pathlib import Path

from training.pages import PAGES, ROOT


TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
README = TEXTS["README.md"]

# An evaluation that asks what cards and other tools rely on, of few images.
OVERRIDES = [
    "evaluation.suite=[discrimination,likelihood,out_of_distribution,generation]",
    "evaluation.max_images=100",
    "evaluation.num_samples=4",
    "evaluation.num_scored_samples=0",
    "evaluation.num_draws=2",
    "evaluation.num_out_of_distribution=50",
]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [body for name, body in fenced if name == language]


def links(text: str) -> list[str]:
    """Where links and pictures lead; those to other machines are left out."""
    targets = re.findall(r"\]\((.*?)\)", text, flags=re.DOTALL)
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def anchors(text: str) -> set[str]:
    """What the headings of a page are linked to by."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def named_paths(text: str) -> list[str]:
    """Files and folders of the repository that a page names in its text."""
    spans = re.findall(r"`([^`\n]+)`", text)
    starts = ("training/", "modeling_hybrid/", "model_cards/", "tests/")
    return [span for span in spans if span.startswith(starts) and " " not in span]


def folder_of(page: str) -> Path:
    return (ROOT / page).parent

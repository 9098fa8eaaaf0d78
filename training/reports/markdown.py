"""Values as Markdown that shows them as they are: a name or a description is text, never markup."""

import re
from typing import Any


# What opens markup anywhere in a line; of underscores those that are not inside a word.
_MARKUP = re.compile(r"[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)")


def text(value: str) -> str:
    """One line that a reader sees as `value`, whatever it holds."""
    line = _MARKUP.sub(r"\\\g<0>", " ".join(value.split()))
    return re.sub(r"^(\d*)([-+=#.)])", r"\1\\\2", line)


def all_text(tree: Any) -> Any:
    """[`text`] of every string in nested dictionaries and lists, keys included."""
    if isinstance(tree, dict):
        return {all_text(key): all_text(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [all_text(value) for value in tree]
    return text(tree) if isinstance(tree, str) else tree


def code(value: str) -> str:
    """A code span, whose marks are longer than any in `value`."""
    marks = _longer_than_any(value, 1)
    padding = " " if len(marks) > 1 else ""
    return f"{marks}{padding}{' '.join(value.split())}{padding}{marks}"


def code_block(value: str) -> str:
    """The same as lines of their own."""
    marks = _longer_than_any(value, 3)
    return f"{marks}\n{value}\n{marks}"


def _longer_than_any(value: str, least: int) -> str:
    longest = max(map(len, re.findall("`+", value)), default=0)
    return "`" * max(least, longest + 1)

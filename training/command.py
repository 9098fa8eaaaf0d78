"""
What all commands of this folder have in common: how they are called, and how they end.

A command ends with 0; with 1 after an error that the user can mend, told in one line on stderr; with 2 where it was
called wrongly; with 3 where a training diverged; with 75 where SIGTERM ended a training, whose state is saved; with 76
where a training on several processes stood still; with 130 after Ctrl-C.

Nothing slow is imported at the top: a command that waits for torch and transformers says so first.
"""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable
from functools import wraps


DIVERGED = 3
# Of sysexits.h: "temporary failure, try again".
TERMINATED = 75
STALLED = 76
# What a user can mend: values, files, a training that diverges, a package that an option needs.
_MENDABLE = (ValueError, OSError, FloatingPointError, ModuleNotFoundError)


class Terminated(Exception):
    """A run was asked to end, and has saved where it stands."""


def command(main: Callable[[list[str]], int | None]) -> Callable[[list[str] | None], int]:
    """Turns `main(arguments)` into a command: by default of this process, with an exit code instead of a traceback."""

    @wraps(main)
    def run(arguments: list[str] | None = None) -> int:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        # Here, not above: it takes seconds, in which a module that imports this one has nothing to show.
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        try:
            return main(sys.argv[1:] if arguments is None else list(arguments)) or 0
        except _MENDABLE as error:
            print(f"error: {error}", file=sys.stderr)
            return DIVERGED if isinstance(error, FloatingPointError) else 1
        except Terminated as end:
            print(end, file=sys.stderr)
            return TERMINATED
        except KeyboardInterrupt:
            print("Interrupted. What is finished is kept; the same command goes on from there.", file=sys.stderr)
            return 130

    return run


def announce(line: str) -> None:
    """What is about to take a while, said before it does: once, by the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def parser_of(name: str, doc: str) -> argparse.ArgumentParser:
    """The parser of the module `name`, whose docstring is the help text."""
    return argparse.ArgumentParser(
        f"python -m {name}", description=doc.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`section.key=value` behind the file that they change; parse by `parse_intermixed_args`."""
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values of the configuration")
    # Under this name the commands beside published tables give them.
    parser.add_argument(
        "--set", dest="overrides_by_name", nargs="+", action="extend", default=[], help=argparse.SUPPRESS
    )


def overrides_of(options: argparse.Namespace) -> list[str]:
    return [*options.overrides, *options.overrides_by_name]


def text_of(name: str, arguments: list[str]) -> str:
    """The command as a user types it, to be kept beside what it made."""
    return shlex.join(["python", "-m", name, *arguments])

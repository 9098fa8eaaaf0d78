"""How far a verb is: images, images per second and time left, on stderr."""

import sys

from tqdm import tqdm

from .processes import rank


class Progress(tqdm):
    """A bar of the first of several processes, unless disabled; in a file, a line every ten seconds at most."""

    def __init__(self, total: int | None, unit: str = " images", disable: bool = False):
        interval = 0.2 if sys.stderr.isatty() else 10
        super().__init__(total=total, unit=unit, file=sys.stderr, mininterval=interval, disable=disable or rank() > 0)

    def skip(self, num: int) -> None:
        """What was done by an earlier run says nothing about the speed of this one."""
        self.initial += num
        self.n += num
        self.refresh()

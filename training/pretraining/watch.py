"""A run of several processes that stands still ends, and says which of them the others wait for."""

import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

from torch import distributed

from ..command import STALLED


@dataclass
class Seen:
    """
    What a process has told of itself.

    Args:
        host: that it runs on.
        count: how far it has come.
        age: seconds since it was last heard.
    """

    host: str
    count: int
    age: float


def blame(seen: dict[int, Seen], interval: float) -> str:
    """
    Which processes the others wait for: those not heard any more, else those that have not come as far as others.

    Args:
        seen: by rank.
        interval: seconds after which each is heard again.
    """
    silent = {rank: one for rank, one in seen.items() if one.age > 4 * interval}
    furthest = max(one.count for one in seen.values())
    behind = {rank: one for rank, one in seen.items() if one.count < furthest}
    named = [f"process {rank} on {one.host}" for rank, one in sorted((silent or behind).items())]
    if not named:
        return "all processes have come equally far"
    return f"{', '.join(named)} {'is silent' if silent else 'has not come as far as the others'}"


class Watch:
    """
    A thread that tells the others how far this process has come, and ends it (status `STALLED`) where it has not moved
    for `limit` seconds. The launcher then ends the others, or starts all of them again (`torchrun --max-restarts`).

    Does nothing for a process that is alone, and without the address of a launcher (`MASTER_ADDR`, `MASTER_PORT`).
    """

    def __init__(self, rank: int, num_processes: int, limit: float):
        self.rank, self.num_processes, self.limit = rank, num_processes, limit
        self.interval = min(10.0, limit / 8)
        self.count, self._ended, self._thread = 0, threading.Event(), None

    def beat(self) -> None:
        """To be called wherever the run has moved on."""
        self.count += 1

    def __enter__(self) -> "Watch":
        if self.num_processes > 1 and {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = distributed.TCPStore(*address, is_master=False, timeout=timedelta(seconds=self.limit))
            # Which nothing tells that was stored before a restart; launchers on several nodes count these differently.
            attempt = [time.time_ns() if distributed.is_initialized() else 0]
            if distributed.is_initialized():
                distributed.broadcast_object_list(attempt)
            self._thread = threading.Thread(target=self._watch, args=(store, f"watch/{attempt[0]}"), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, store: distributed.TCPStore, prefix: str) -> None:
        began = moved = time.monotonic()
        count, tick, told, heard = self.count, 0, {}, {}
        while not self._ended.wait(self.interval if tick else 0):
            now, tick = time.monotonic(), tick + 1
            if self.count != count:
                count, moved = self.count, now
            message = f"nothing is heard of the launcher at {os.environ['MASTER_ADDR']}"
            try:
                store.set(f"{prefix}/{self.rank}", json.dumps([socket.gethostname(), count, tick]))
                for rank in range(self.num_processes):
                    key = f"{prefix}/{rank}"
                    new = json.loads(store.get(key)) if store.check([key]) else ["an unknown host", 0, 0]
                    if new != told.get(rank):
                        told[rank], heard[rank] = new, now
                seen = {rank: Seen(*new[:2], now - heard.get(rank, began)) for rank, new in told.items()}
                message = blame(seen, self.interval)
            except (RuntimeError, ValueError):  # the launcher is gone
                pass
            if now - moved > self.limit:
                print(
                    f"error: Process {self.rank} on {socket.gethostname()} has stood still for {now - moved:.0f} s "
                    f"(stall_seconds={self.limit:g}): {message}.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(STALLED)  # the main thread may wait for ever

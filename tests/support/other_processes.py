"""Other processes that the tests need: groups that compute together, and interpreters outside the repository."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed


# Forked from a process that has imported these: an import takes longer than what the tests compute.
multiprocessing.set_forkserver_preload(["modeling_hybrid", "modeling_hybrid.objectives", "pytest"])


def run_group(function: Callable, num_processes: int, folder: Path, *arguments) -> None:
    """
    `function(rank, *arguments)` in each of `num_processes` processes of a group.

    Args:
        folder: an empty one, in which the processes find each other.
    """
    of_each = (function, num_processes, f"file://{folder}/group", arguments)
    torch.multiprocessing.start_processes(_member, of_each, num_processes, start_method="forkserver")


def _member(rank: int, function: Callable, num_processes: int, meeting_place: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # whatever network there is
    distributed.init_process_group("gloo", init_method=meeting_place, rank=rank, world_size=num_processes)
    function(rank, *arguments)
    distributed.barrier()
    distributed.destroy_process_group()


# Hides the package, whatever way it was installed.
NO_PACKAGE = """
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_hybrid":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hide())
"""
# Runs one script after the other, each as if it were the first: caches are empty, code that came with a checkpoint is
# forgotten. A connection that leaves what the script is allowed, tried once, ends the process.
SERVER = """
import json, os, shutil, socket, sys, traceback


def guard(function):
    def call(self, address, *arguments):
        if address[0] not in allowed:
            print(f"A connection to {address} was tried.", flush=True)
            os._exit(7)
        return function(self, address, *arguments)

    return call


socket.socket.connect, socket.socket.connect_ex = guard(socket.socket.connect), guard(socket.socket.connect_ex)
channel = socket.socket(fileno=int(sys.argv[1])).makefile("rw")
for request in map(json.loads, channel):
    allowed = request["allowed"]
    for folder in (os.environ["HF_HOME"], os.environ["HF_MODULES_CACHE"]):
        shutil.rmtree(folder, ignore_errors=True)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2), os.close(output)
    status = 0
    try:
        exec(compile(request["code"], "script", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush(), sys.stderr.flush()
    print(status, file=channel, flush=True)
"""


class Interpreter:
    """
    A process outside the repository, with Hugging Face caches of its own, that runs scripts.

    Args:
        folder: an empty one, which it works in.
        package: whether `modeling_hybrid` can be imported there.
        environment: further variables of its environment.
    """

    def __init__(self, folder: Path, package: bool, **environment: str):
        self.folder, self.package, self.environment = folder, package, environment
        self.process = None

    def start(self) -> None:
        server = self.folder / "server.py"
        hidden = "" if self.package else NO_PACKAGE
        server.write_text(f"import sys\n{hidden}\n{SERVER}")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
        kept |= {
            "HF_HOME": str(self.folder / "hf_home"),
            "HF_MODULES_CACHE": str(self.folder / "modules"),
            "OMP_NUM_THREADS": "1",
        }
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(server), str(theirs.fileno())],
                cwd=self.folder,
                env=kept | self.environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
            self.channel = ours.makefile("rw")

    def run(self, code: str, allowed: tuple[str, ...] = (), timeout: float = 300) -> str:
        """What a script printed; it may connect to the addresses that are `allowed`."""
        if self.process is None:
            self.start()
        output = self.folder / "output.txt"
        request = {"code": code, "allowed": allowed, "output": str(output)}
        print(json.dumps(request), file=self.channel, flush=True)
        watch = threading.Timer(timeout, self.process.kill)
        watch.start()
        status = self.channel.readline().strip()
        watch.cancel()
        if not status:
            self.end()
        printed = output.read_text()
        assert status == "0", printed
        return printed

    def end(self) -> None:
        if self.process is not None:
            self.channel.close()
            self.process.kill()
            self.process.wait()
            self.process = None

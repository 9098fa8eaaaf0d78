"""What `trust_remote_code=True` trusts: code that computes, opens no connection, starts no process, writes no file."""

import tomllib
from pathlib import Path

import modeling_hybrid
from modeling_hybrid import HybridImageProcessor
from modeling_hybrid.version import REQUIREMENT


# Without indentation, which `run_python` would remove from a part of it only.
WATCH = """
import os, sys

OUTSIDE = ("socket.", "urllib.", "http.", "ftplib.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn")
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# The loader of transformers copies the code of the checkpoint there.
COPIES = (os.environ["HF_MODULES_CACHE"], os.environ["HF_HOME"])
found, watching = [], False


def watch(event, arguments):
    if not watching:
        return
    changed = arguments[0] if event.startswith(CHANGES) or (event == "open" and arguments[2] & WRITES) else None
    if isinstance(changed, (str, bytes, os.PathLike)):
        if not os.path.abspath(os.fsdecode(changed)).startswith(COPIES):
            found.append(f"{event} {arguments}"[:300])
    elif event.startswith(OUTSIDE):
        found.append(f"{event} {arguments}"[:300])


sys.addaudithook(watch)
"""
USE = """
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoModelForImageClassification
from transformers import AutoModelForPreTraining, pipeline

watching, trust = True, dict(trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, **trust)
generator = AutoModelForCausalLM.from_pretrained(folder, **trust)
images = processor.codes_to_images(generator.generate(batch_size=4))
inputs = processor(images, return_tensors="pt")
generator.log_likelihood(**inputs), generator.generate(**inputs, num_given_rows=4)
views = inputs["pixel_values"].view(2, 2, *inputs["pixel_values"].shape[1:])
AutoModelForPreTraining.from_pretrained(folder, **trust)(views).loss.backward()
AutoModelForImageClassification.from_pretrained(folder, **trust)(**inputs)
AutoModel.from_pretrained(folder, **trust)(**inputs)
pipeline("image-feature-extraction", model=folder, pool=True, **trust)(images)
watching = False
assert type(generator).__module__.startswith("transformers_modules"), type(generator)
"""


def test_code_of_a_checkpoint_reaches_nothing(make_model, run_python, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    HybridImageProcessor.from_config(model.config).save_pretrained(tmp_path)
    printed = run_python(f"{WATCH}\nfolder = {str(tmp_path)!r}\n{USE}\nprint('found', found)", package=False)
    assert printed.splitlines()[-1] == "found []"


def test_the_watch_sees_files_connections_and_processes(run_python, tmp_path):
    attempts = f"""
watching = True
open({str(tmp_path / "file")!r}, "w").close()
os.mkdir({str(tmp_path / "folder")!r})
import socket, subprocess
socket.socket().close(), subprocess.run(["true"])
watching = False
"""
    printed = run_python(f"{WATCH}\n{attempts}\nprint(*found, sep='\\n')", package=False)
    for event in ("open", "os.mkdir", "socket.", "subprocess.Popen"):
        assert f"\n{event}" in f"\n{printed}", printed


def test_earlier_versions_are_refused_by_name(make_model, run_python, tmp_path):
    """Whatever they lack, of which one module stands for all."""
    model = make_model()
    for part in (model, HybridImageProcessor.from_config(model.config)):
        part.save_pretrained(tmp_path)
    printed = run_python(
        f"""
        import importlib.metadata, sys
        from transformers import AutoImageProcessor, AutoModel

        version, backends = importlib.metadata.version, "transformers.image_processing_backends"
        importlib.metadata.version = lambda name: "5.17.0" if name == "transformers" else version(name)
        hidden, sys.modules[backends] = sys.modules.get(backends), None
        for auto_class in (AutoModel, AutoImageProcessor):
            try:
                auto_class.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
            except ImportError as error:
                print("refused:", error)
        importlib.metadata.version = version
        del sys.modules[backends]
        if hidden is not None:
            sys.modules[backends] = hidden
        """,
        package=False,
    )
    assert printed.count("refused: transformers>=5.18 is required") == 2 and printed.count("pip install -U") == 2
    assert printed.count("transformers==5.17.0") == 2


def test_the_requirement_is_that_of_the_package():
    root = Path(modeling_hybrid.__file__).parents[1]
    dependencies = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert REQUIREMENT in [dependency.split(",")[0] for dependency in dependencies]
    assert REQUIREMENT.replace(">=", "==") + ".0" in (root / "tests/constraints-oldest.txt").read_text().splitlines()

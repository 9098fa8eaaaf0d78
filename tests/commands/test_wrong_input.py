"""What users get wrong: a damaged checkpoint, threshold or collection is one line on stderr and exit code 1."""

import errno
import json
import os
import shutil

import pytest


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))


def cut(path, size=1000):
    path.write_bytes(path.read_bytes()[:size])


DAMAGES = {
    "weights cut off": lambda folder: cut(folder / "model.safetensors"),
    "no object": lambda folder: (folder / "config.json").write_text("[]"),
    "a wrong type": lambda folder: edit_config(folder, hidden_size="wide"),
    "another width": lambda folder: edit_config(folder, hidden_size=64, intermediate_size=None),
    "no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no processor": lambda folder: (folder / "preprocessor_config.json").unlink(),
}
# Of `hybrid info`, which loads no weights and no processor.
UNSEEN = ("another width", "no weights", "no processor")


@pytest.fixture
def copied(tmp_path):
    def copy(folder):
        return shutil.copytree(folder, tmp_path / f"a copy of {folder.name}")

    return copy


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints(hybrid, checkpoint, digits, copied, damage):
    folder = copied(checkpoint)
    DAMAGES[damage](folder)
    for arguments in (["score", folder, digits], ["info", folder]):
        is_seen = arguments[0] == "score" or damage not in UNSEEN
        told = hybrid(*arguments, code=int(is_seen)).stderr
        assert "Traceback" not in told and ("error: " in told) is is_seen
        assert str(folder) in told


def test_a_damaged_card(hybrid, checkpoint, copied):
    folder = copied(checkpoint)
    (folder / "README.md").write_text("---\n: [\n---\n")
    assert f"The files of {folder} are damaged" in hybrid("info", folder, code=1).stderr


def test_a_file_is_no_checkpoint(hybrid, digits):
    path = digits / "test" / "30.png"
    assert f"error: {path} is a file; expected the folder" in hybrid("score", path, digits, code=1).stderr


@pytest.mark.parametrize(("content", "message"), [("{", "expected a JSON object"), ("[]", "no 'false_alarm_rate'")])
def test_damaged_thresholds(hybrid, detector, digits, copied, content, message):
    folder = copied(detector)
    (folder / "threshold.json").write_text(content)
    told = hybrid("detect", "score", folder, digits, code=1).stderr
    assert f"error: {folder / 'threshold.json'} is damaged" in told and message in told
    assert f"{folder / 'threshold.json'} is damaged" in hybrid("info", folder, code=1).stderr


@pytest.mark.parametrize("content", ["{", "{}", "3"])
def test_damaged_collections(hybrid, checkpoint, digits, tmp_path, content):
    arguments = [checkpoint, digits / "test", "--limit", 3]
    hybrid("embed", *arguments, "--output", tmp_path / "out")
    (tmp_path / "out" / "embedding.json").write_text(content)
    for verb in (["search", checkpoint, tmp_path / "out", digits], ["embed", *arguments, "--output", tmp_path / "out"]):
        assert f"error: {tmp_path / 'out' / 'embedding.json'} is damaged" in hybrid(*verb, code=1).stderr


def test_outputs_that_cannot_be_written_are_refused_before_the_work(hybrid, checkpoint, digits, tmp_path):
    (tmp_path / "file").write_text("")
    hybrid("embed", checkpoint, digits, "--limit", 3, "--output", tmp_path / "embedded")
    for verb, option, output in (
        (["curate", checkpoint, digits], "--output", "folder"),
        (["detect", "fit", checkpoint, digits], "--output", "folder"),
        (["complete", checkpoint, digits], "--output", "sheet.png"),
        (["complete", checkpoint, digits], "--output", "folder"),
        (["generate", checkpoint], "--output", "sheet.png"),
        (["vary", checkpoint, digits], "--output", "sheet.png"),
        (["search", checkpoint, tmp_path / "embedded", digits], "--sheet", "sheet.png"),
    ):
        told = hybrid(*verb, option, tmp_path / "file" / output, code=1).stderr
        assert told.startswith("error: ") and str(tmp_path / "file") in told and "Loading" not in told


def test_folders_that_cannot_be_read_are_refused(hybrid, checkpoint, digits, monkeypatch):
    """The tests may run as a user who can read everything."""
    scandir = os.scandir

    def locked(path):
        if os.path.basename(path) == "test":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    told = hybrid("score", checkpoint, digits, code=1).stderr
    assert f"Permission denied: '{digits / 'test'}'" in told

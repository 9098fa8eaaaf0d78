"""The output folder of a run: another run's is refused, and what is no run's is never touched."""

import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from training_fixtures import ROOT, small_config, train_whole

from training.config import load_config
from training.disk import require_space
from training.pretraining import checkpoints
from training.pretraining.output_folder import LOCK, open_output_dir


def test_output_folder_of_another_run_is_refused_by_the_names_that_differ(tmp_path):
    open_output_dir(small_config(tmp_path))
    other = small_config(tmp_path, seed=1, model__contrastive_weight=0.5)
    with pytest.raises(ValueError, match=r"model\.contrastive_weight, seed; .*overwrite=true"):
        open_output_dir(other)
    open_output_dir(small_config(tmp_path))


def test_finished_run_is_refused_and_may_be_overwritten(tmp_path):
    config = small_config(tmp_path / "run")
    open_output_dir(config)
    (tmp_path / "run" / "evaluation.json").write_text("{}")
    open_output_dir(config)  # killed before its card was written: not finished, so it goes on
    (tmp_path / "run" / "README.md").write_text("the card")
    with pytest.raises(ValueError, match="finished run"):
        open_output_dir(config)
    open_output_dir(replace(config, overwrite=True))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", LOCK}
    open_output_dir(config)  # goes on with what overwrite=true began


def test_a_moved_run_is_still_the_same(tmp_path):
    open_output_dir(small_config(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    open_output_dir(small_config(tmp_path / "there"))
    assert load_config(tmp_path / "there" / "config.yaml") == small_config(tmp_path / "there")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml"])
def test_foreign_files_are_never_touched(tmp_path, name, overwrite):
    (tmp_path / name).write_text("years: of work")
    with pytest.raises(ValueError, match="choose another one"):
        open_output_dir(replace(small_config(tmp_path), overwrite=overwrite))
    assert (tmp_path / name).read_text() == "years: of work"


def test_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="not a run's"):
        open_output_dir(small_config(tmp_path / "file"))


def test_two_processes_never_share_a_folder_and_a_kill_gives_it_free(tmp_path):
    config = small_config(tmp_path)
    open_output_dir(config).close()
    hold = (
        "import sys, time; from pathlib import Path; from training.pretraining.output_folder import _lock;"
        "lock = _lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(300)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    before = (tmp_path / "config.yaml").read_text()
    for refused in (config, replace(config, overwrite=True)):
        with pytest.raises(ValueError, match=rf"in use by process {holder.pid} on .*run\.lock"):
            open_output_dir(refused)
    assert (tmp_path / "config.yaml").read_text() == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    open_output_dir(config).close()


def test_a_kill_before_the_configuration_was_written_leaves_a_folder_that_can_be_used(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on a machine\n")
    open_output_dir(small_config(tmp_path)).close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"file/run cannot be written .*see that you may write there"):
        open_output_dir(small_config(tmp_path / "file" / "run"))

    def refuse(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(OSError, match=r"there cannot be written .*Permission denied"):
        open_output_dir(small_config(tmp_path / "there"))


def test_a_configuration_that_could_not_be_written_again_is_still_there(tmp_path, monkeypatch):
    """What a run is resumed by survives a disk that is full when it is resumed, and a kill at that moment."""
    config = small_config(tmp_path)
    open_output_dir(config).close()
    before = (tmp_path / "config.yaml").read_bytes()

    def write_half(config, path):
        path.write_text("output_di")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"config\.yaml cannot be written.*No space left"):
        patch.setattr("training.pretraining.output_folder.save_config", write_half)
        open_output_dir(config)
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", LOCK}
    assert (tmp_path / "config.yaml").read_bytes() == before
    # A kill while the first one was written leaves a folder that can be used.
    (tmp_path / "config.yaml").rename(tmp_path / "config.yaml.partial")
    open_output_dir(config).close()


def test_a_run_takes_no_more_room_than_it_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "training.pretraining.checkpoints.require_space", lambda folder, num_bytes: asked.append(num_bytes)
    )
    run = train_whole(small_config(tmp_path, optimization__separate_moments=True))
    checkpoints.require_space_for(run)
    # At the end lie two states, two models; while a state is written, a third, and a third model.
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    written += sum(path.stat().st_size for path in tmp_path.rglob("optimizer*.bin"))
    assert 2 / 3 * asked[0] < written < asked[0]


def test_a_disk_without_room_for_a_run_is_told_before_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "model.safetensors").write_bytes(b"0" * 2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=60 * 2**20))
    require_space(tmp_path, 11 * 2**20)  # of which one is written
    with pytest.raises(ValueError, match=r"60 MiB free, but the run writes up to 61 MiB more; free some"):
        require_space(tmp_path, 12 * 2**20)

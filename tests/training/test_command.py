"""How commands are called and how they end."""

import shlex
import sys

import pytest
from training_fixtures import run_in_repository

from training.command import add_overrides, announce, command, overrides_of, parser_of, text_of
from training.config import SUITE, differences, load_config


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("learning_rate=-1"), 1, "error: learning_rate=-1"),
        (FileNotFoundError(2, "No such file", "a.yaml"), 1, "a.yaml"),
        (FloatingPointError("loss is nan"), 3, "loss is nan"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line(error, code, said, capsys):
    @command
    def main(arguments):
        raise error

    assert main([]) == code
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_other_errors_keep_their_traceback():
    @command
    def main(arguments):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        main([])


def test_exit_codes_and_arguments(monkeypatch):
    seen = []

    @command
    def main(arguments):
        seen.append(arguments)
        return {"none": None, "one": 1}[arguments[0]]

    assert main(["none"]) == 0 and main(("one",)) == 1
    monkeypatch.setattr("sys.argv", ["module", "none"])
    assert main() == 0
    assert seen == [["none"], ["one"], ["none"]]


def test_nothing_slow_is_imported_before_a_run_says_so():
    """Nor are the pictures of the evaluation before the first step."""
    imported = "import sys, {}; print(*sys.modules)"
    for module, slow in (
        ("training.pretrain", {"torch"}),
        ("training.pretraining.loop", {"matplotlib"}),
    ):
        done = run_in_repository([sys.executable, "-c", imported.format(module)])
        assert module in done.stdout.split() and not slow & set(done.stdout.split()), done.stderr


def test_one_process_of_many_announces(monkeypatch, capsys):
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        announce(f"Loading in {rank} ...")
    assert capsys.readouterr().out == "Loading in 0 ...\n"


def test_overrides_stand_behind_the_file_or_behind_options():
    parser = parser_of("training.some", "What it does.\n\n    python -m training.some")
    parser.add_argument("config")
    add_overrides(parser)
    parser.add_argument("--seeds", type=int, default=3)
    for arguments in (["a.yaml", "x.y=1", "z=2", "--seeds", "5"], ["a.yaml", "--seeds", "5", "x.y=1", "z=2"]):
        options = parser.parse_intermixed_args(arguments)
        assert (options.config, overrides_of(options), options.seeds) == ("a.yaml", ["x.y=1", "z=2"], 5)
    # As in the commands beside published tables.
    options = parser.parse_intermixed_args(["a.yaml", "x.y=1", "--set", "z=2", "w=3"])
    assert overrides_of(options) == ["x.y=1", "z=2", "w=3"]
    assert "--set" not in parser.format_help() and "What it does." in parser.format_help()


def test_the_text_of_a_command_can_be_typed():
    arguments = ["a.yaml", "model.objective={name: clip, a: 1}", "output_dir=my runs"]
    assert shlex.split(text_of("training.pretrain", arguments)) == ["python", "-m", "training.pretrain", *arguments]


def test_the_folder_of_questions_is_the_suite_in_any_order(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("output_dir: out\ndata: {dataset: digits}\n")
    assert {"discrimination", "likelihood", "robustness"} <= set(SUITE) and "__init__" not in SUITE
    shuffled = load_config(config, [f"evaluation.suite=[{','.join(reversed(SUITE))}]"])
    assert differences(shuffled, load_config(config)) == []
    with pytest.raises(ValueError, match="robustnes"):
        load_config(config, ["evaluation.suite=[robustnes]"])

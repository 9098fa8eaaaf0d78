"""What the pages show is run as it stands, and says what is true."""

import re

import numpy as np
import pytest
import torch
from documents import README, ROOT, TEXTS, anchors, blocks, folder_of, links, named_paths
from PIL import Image

from modeling_hybrid import NAMED_SIZES, HybridConfig, HybridForPreTraining
from modeling_hybrid.objectives import OBJECTIVES
from training import pages
from training.comparison.verdict import verdict
from training.config import SUITE, load_config
from training.reports.overview import overview


every_page = pytest.mark.parametrize("page", TEXTS)

# What must hold after each snippet of a page.
CHECKS = {
    "README.md": [
        "assert features.shape == (8, 256) and len(samples) == 16 and bits_per_dim.shape == (8,)\n"
        "assert scores.shape == scores_of_noise.shape == (8,)"
    ],
    "modeling_hybrid/CONDITION.md": [
        "assert bits.shape == log_likelihood.shape == (8,) and bits_of_patches.shape == (8, 16) and len(images) == 16\n"
        "assert len(variations) == len(closer) == len(completed) == 8 and len(between) == 5\n"
        "assert decoder_features.shape == features.shape and both.shape == (8, 3072)\n"
        "assert some.shape == (2,) and surprise.shape == (8, 16)"
    ],
    "modeling_hybrid/objectives/README.md": [
        "assert loss.shape == () and loss > 0 and {'centre', 'effective_rank', 'alignment'} <= telemetry.keys()"
    ],
    "training/evaluation/README.md": [
        "class Given: features = {'test': np.ones((3, 4))}\n"
        "found = evaluate(Given())\n"
        "assert found.results == {'feature_length': 2.0} and found.per_image['feature_length'].shape == (3,)",
        "assert found == {'auroc': 1.0, 'fpr95': 0.0} and 0 <= accuracy['accuracy'] <= 1",
    ],
}


def test_snippets_run(run_as_user):
    """Each for itself, in one fresh process, which takes seconds to start."""
    snippets = [
        f"{snippet}\n{check}"
        for page, text in TEXTS.items()
        for snippet, check in zip(blocks(text, "python"), CHECKS.get(page, []), strict=True)
    ]
    run_as_user("\n".join(f"exec({snippet!r}, {{'__name__': '__main__'}})" for snippet in snippets))


@every_page
def test_tables_are_what_stored_results_give(page):
    assert pages.rewritten(TEXTS[page]) == TEXTS[page], "run python -m training.pages"


def test_every_stored_comparison_is_on_a_page():
    shown = {
        path for text in TEXTS.values() for names in re.findall("<!-- table: (.*) -->", text) for path in names.split()
    }
    stored = [*ROOT.glob("model_cards/*/co*/*.json"), *ROOT.glob("training/benchmarks/results/*.json")]
    assert stored and {path.relative_to(ROOT).as_posix() for path in stored} <= shown


def test_check_names_pages_that_differ(tmp_path, monkeypatch, capsys):
    stored = "model_cards/digits/comparison/comparison.json"
    for name, table in (("right.md", ""), ("wrong.md", "typed by hand\n")):
        text = f"# Page\n\n<!-- table: verdict {stored} -->\n{table}<!-- end -->\n"
        (tmp_path / name).write_text(text if table else pages.rewritten(text))
    (tmp_path / stored).parent.mkdir(parents=True)
    (tmp_path / stored).write_text((ROOT / stored).read_text())
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "PAGES", ("right.md", "wrong.md"))
    assert pages.main(["--check"]) == 1
    assert "wrong.md differs" in (said := capsys.readouterr().out) and "right.md" not in said
    assert "typed by hand" in (tmp_path / "wrong.md").read_text()
    assert pages.main([]) == 0 and pages.main(["--check"]) == 0
    assert (tmp_path / "wrong.md").read_text() == (tmp_path / "right.md").read_text()


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ("<!-- table: verdicts a.json -->\n<!-- end -->", "no table 'verdicts'; the tables are comparison"),
        ("<!-- table: verdict -->\n<!-- end -->", "names no file"),
        ("<!-- table: verdict a.json -->", "no line `<!-- end -->` follows"),
    ],
)
def test_tables_that_cannot_be_written_are_named(lines, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        pages.rewritten(f"# Page\n\n{lines}\n")


def comparison_of(**differences) -> dict:
    """One of a single value per arm, as `verdict` reads it."""
    keys = ("linear_accuracy", "few_shot_accuracy", "corrupted_accuracy", "corrupted_accuracy_augmented_probe")
    run = {f"{prefix}{key}": 0.5 for key in keys for prefix in ("", "pixel_", "random_")}
    keys += ("bits_per_dim", "ood_auroc, controls ood_auroc_best_score")
    found = {key: {"mean": 0.0, "low": -0.1, "high": 0.1} for key in keys} | differences
    names = ("contrastive", "generative", "hybrid")
    arms = {name: [run | {"random_linear_accuracy": 0.4, "random_few_shot_accuracy": 0.4}] for name in names}
    arms["hybrid"][0] |= {"linear_accuracy": 0.6, "corrupted_accuracy": 0.6}
    arms["contrastive"][0] |= {"random_few_shot_accuracy": 0.51}
    return {"config": "set.yaml", "equal": "seconds", "arms": arms, "hybrid_minus": dict.fromkeys(names[:2], found)}


def test_verdict_follows_the_intervals():
    def between(low, mean, high):
        return {"low": low, "mean": mean, "high": high}

    auroc = "ood_auroc, controls ood_auroc_best_score"
    stored = [
        comparison_of(linear_accuracy=between(0.001, 0.0074, 0.013), bits_per_dim=between(-0.3, -0.2, -0.1)),
        comparison_of(linear_accuracy=between(-0.02, -0.01, -0.001), bits_per_dim=between(-0.01, 0, 0.01)),
        comparison_of(linear_accuracy=between(None, 0.01, None), bits_per_dim=between(-0.01, 0.009, 0.02)),
        comparison_of(bits_per_dim=between(0.005, 0.011, 0.02), **{auroc: between(-0.3, -0.2, -0.1)}),
    ]
    for found in stored[0]["hybrid_minus"].values():
        found["novelty_auroc"] = between(0.01, 0.02, 0.03)
    # Beside the likelihood where that has the better features.
    stored[3]["arms"]["generative"][0] |= {"linear_accuracy": 0.55}
    head, _, *lines = verdict(*stored).splitlines()
    assert head == "|  |" + " set, equal seconds |" * 4
    rows = [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines]
    assert len(rows) == 8
    assert rows[0] == [
        "better +.007 (contrastive only)",
        "**worse -.010** (contrastive only)",
        "one seed +.010 (contrastive only)",
        "tie +.000 (generative only)",
    ]
    idle = "**says nothing** (contrastive only .500, untrained .510)"
    assert rows[1] == [f"{idle}; tie +.000 (contrastive only)"] * 4
    assert rows[2] == ["yes, **no**"] * 4
    assert rows[3] == ["better -.200", "yes +.000", "the mean is, not its interval: +.009", "**no** +.011"]
    assert rows[4][0] == "tie +.000 (contrastive only), tie +.000 (generative only)"
    assert rows[4][3].count("**worse -.200**") == 2
    assert rows[5][1:] == ["not asked"] * 3
    assert rows[5][0] == "better +.020 (contrastive only), better +.020 (generative only)"
    assert rows[6][0].endswith(", above pixels") and rows[7][0].endswith(", **not above pixels**")


def test_picture_is_drawn_from_those_of_the_cards():
    with Image.open(ROOT / pages.PICTURE) as opened:
        stored = np.asarray(opened.convert("RGB"), dtype=float)
    drawn = np.asarray(overview(ROOT / "model_cards"), dtype=float)
    # Another version of the libraries may draw letters a little differently.
    assert stored.shape == drawn.shape and np.abs(stored - drawn).mean() < 2, "run python -m training.pages --picture"
    assert (ROOT / pages.PICTURE).stat().st_size < 250_000 and pages.PICTURE in README


@every_page
def test_links_and_paths_lead_somewhere(page):
    text = TEXTS[page]
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = folder_of(page) / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link
    for path in named_paths(text):
        assert any(ROOT.glob(path.rstrip("/"))), path


def test_readme_is_short():
    assert len(README.splitlines()) < 280


def test_readme_commands_are_the_ones_ci_runs():
    commands = "\n".join(blocks(README, "bash"))
    ci = (ROOT / ".ci/run").read_text()
    install, test = next(line for line in commands.splitlines() if line.endswith("&& pytest -n 2")).split(" && ")
    assert install in ci and f"\n{test}\n" in ci


def test_commands_of_pages_exist():
    for text in TEXTS.values():
        for name in re.findall(r"-m (training(?:\.\w+)+)", text):
            assert (ROOT / f"{name.replace('.', '/')}.py").exists(), name
        for config in re.findall(r"training/configs/\w+\.yaml", text):
            assert (ROOT / config).exists(), config


def test_tour_names_what_is_in_the_files():
    """Every class, function, constant and field beside a link is defined in a file that the row links to."""
    rows = [line.split("|")[2] for line in README.splitlines() if re.match(r"\| [^|]+\? \|", line)]
    assert len(rows) >= 10
    for row in rows:
        linked = [ROOT / link for link in links(row)]
        files = [file for path in linked for file in (path.glob("*.py") if path.is_dir() else [path])]
        source = "\n".join(file.read_text() for file in files)
        for name in re.findall(r"(?<!\[)`([A-Za-z_.]+)`", row):
            for part in name.split("."):
                assert re.search(rf"^ *((class|def) {part}\b|{part}\b.*[:=])", source, flags=re.MULTILINE), (name, row)


def test_tree_of_the_readme():
    """It names only what exists, and every folder of the package and of `training/` is in it."""
    (tree,) = [block for block in blocks(README, "") if block.startswith("modeling_hybrid/")]
    # The folder that the entries of each indentation lie in.
    folders, listed = {0: ""}, set()
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        names = [name for name in re.split(r"\s{2,}", line.strip()) if re.fullmatch(r"[\w.]+/?", name)]
        listed |= {folders[indent] + name for name in names}
        if names[0].endswith("/"):
            folders[indent + 2] = folders[indent] + names[0]
    for path in listed:
        assert (ROOT / path).exists(), path
    existing = {
        f"{path.relative_to(ROOT)}/"
        for top in ("modeling_hybrid", "training")
        for path in (ROOT / top).rglob("*")
        # Each metric is a folder of its own, because `evaluate` loads folders.
        if path.is_dir() and path.name != "__pycache__" and path.parent.name != "metrics"
    }
    assert existing <= listed, existing - listed
    of_package = {f"modeling_hybrid/{path.name}" for path in (ROOT / "modeling_hybrid").glob("[!_]*.py")}
    assert of_package - {"modeling_hybrid/version.py"} <= listed


def test_parameter_counts():
    for size in NAMED_SIZES:
        with torch.device("meta"):
            model = HybridForPreTraining(HybridConfig.from_size(size))
        total, encoder = model.num_parameters() / 1e6, model.encoder.num_parameters() / 1e6
        row = next(line for line in README.splitlines() if line.startswith(f"| `{size}`"))
        stated = [float(value) for value in re.findall(r"([\d.]+) M", row)]
        assert stated == pytest.approx([total, encoder], rel=0.03), size


@pytest.mark.parametrize(
    ("page", "names"),
    [("modeling_hybrid/objectives/README.md", OBJECTIVES), ("training/evaluation/README.md", SUITE)],
)
def test_tables_list_every_objective_and_every_question(page, names):
    rows = [line.split("|")[1] for line in TEXTS[page].splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(names)


def test_every_configuration_is_valid():
    for path in (ROOT / "training/configs").glob("*.yaml"):
        load_config(path, ["data.dataset=digits"])
        assert "python -m training.pretrain" in path.read_text()

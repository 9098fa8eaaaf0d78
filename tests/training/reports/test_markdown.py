"""Names and descriptions stay text in cards, tables and pictures, whatever they hold."""

import json

import numpy as np
import pytest
from huggingface_hub import ModelCard
from matplotlib.mathtext import MathTextParser
from training_fixtures import small_config

from training.reports import model_card, pictures
from training.reports.markdown import all_text, code, code_block, text


NASTY = "<script>alert(1)</script>\n# Heading\n| a | b |\n![x](http://a.org/x.png) `code` **bold** _it_ $x_{$ {{ 7*7 }}"


def test_plain_words_stay_as_they_are():
    for value in ("font_glyphs_28, 8x8 grey (17 levels); 1,293 of them", "it's 5 - 3. Done!", "Intel(R) Xeon(R) @ 2.1"):
        assert text(value) == value


def test_markup_is_escaped():
    assert text("<b> | `x` *y* [z](u) _it_ a_b $v$") == r"\<b\> \| \`x\` \*y\* \[z\](u) \_it\_ a_b \$v\$"
    assert text("# not\n\na heading") == r"\# not a heading"
    assert [text(line) for line in ("- a", "1. a", "=")] == [r"\- a", r"1\. a", r"\="]
    assert all_text({"a|b": ["<i>", 1, None]}) == {r"a\|b": [r"\<i\>", 1, None]}


def test_code_ends_where_the_value_ends():
    assert code("python -m x") == "`python -m x`"
    assert code("a ``b`` c") == "``` a ``b`` c ```"
    assert code_block("a\n```\n<script>") == "````\na\n```\n<script>\n````"


@pytest.fixture
def card(tmp_path) -> str:
    config = small_config(tmp_path / "run")
    for name in ("model_name", "dataset_name", "data_description", "limitations", "license"):
        setattr(config.card, name, NASTY)
    (tmp_path / "figures").mkdir()
    results = {
        "num_images": dict.fromkeys(("train", "validation", "test"), 1),
        "num_parameters": 1,
        "num_encoder_parameters": 1,
        "train_seconds": 1.0,
        "hardware": NASTY,
        "seed": 0,
        "command": f"python -m x {NASTY}\n```\n<script>",
        "linear_accuracy": 0.5,
        "ood_auroc_by_set": {NASTY: {"combined": 0.5}},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(results))
    return model_card.write(tmp_path, tmp_path / "elsewhere" / "model", config).read_text()


def test_no_field_of_a_card_is_markup(card):
    metadata, body = ModelCard(card).data, ModelCard(card).text
    assert metadata.model_name == NASTY  # YAML, quoted
    prose = body.split("````\n")
    assert len(prose) == 3 and "<script>" in prose[1]  # the command, in a fence that it cannot close
    prose = prose[0] + prose[2]
    assert r"\<script\>" in prose and "<script>" not in prose.replace(r"\<script\>", "")
    assert "\n# Heading" not in prose and "\n| a |" not in prose and r"{{ 7\*7 }}" in prose
    assert prose.count("![x]") == 0 and r"\| a \| b \|" in prose


def test_pictures_write_names_as_they_are(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("mathtext")

    monkeypatch.setattr(MathTextParser, "parse", refuse)
    names, rng = ["x_{$", "$a$", r"$\frac{$", NASTY], np.random.default_rng(0)
    scores = {name: rng.random(8) for name in names}
    pictures.feature_map(rng.random((8, 3)), np.arange(8) % 4, names, tmp_path / "features.png")
    pictures.likelihood_histograms(rng.random(8), scores, dict.fromkeys(names, 0.5), tmp_path / "likelihood.png")
    pictures.roc_curves(scores, dict.fromkeys(names, scores), tmp_path / "roc.png")
    pictures.reliability_diagram(scores, rng.random(8) > 0.5, 4, tmp_path / "calibration.png")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "bits_per_dim": 2.0}\n')
    pictures.training_curves(tmp_path / "log.jsonl", tmp_path / "training_curves.png")
    assert len(list(tmp_path.glob("*.png"))) == 5


BROKEN = {"cut": '{"step": 2, "lo', "other": "[]", "no step": '{"step": "two"}', "deep": "[" * 100_000, "empty": ""}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_broken_line_of_the_log_is_named(tmp_path, line):
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2, is damaged"):
        pictures.training_curves(tmp_path / "log.jsonl", tmp_path / "training_curves.png")

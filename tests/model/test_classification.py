"""The classifier: the loss that each kind of problem asks for, and the labels that it takes."""

import pytest
import torch
from torch import nn
from transformers import pipeline

from modeling_hybrid import HybridForImageClassification, HybridImageProcessor


@pytest.fixture
def classify(make_model, draw_images):
    """Builds a classifier from fields of its configuration, and gives it with four images."""

    def build(**fields):
        model = make_model(HybridForImageClassification, **fields)
        return model, draw_images(model.config, 4)

    return build


CLASSES = torch.tensor([0, 2, -100, 1])
SEVERAL = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
VALUES = torch.tensor([0.5, -1.0, 2.0, 7.0])


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "loss"),
    [
        ("single_label_classification", 3, CLASSES, nn.functional.cross_entropy),
        (None, 3, CLASSES, nn.functional.cross_entropy),
        (None, 3, CLASSES.int(), lambda logits, labels: nn.functional.cross_entropy(logits, labels.long())),
        ("multi_label_classification", 3, SEVERAL.float(), nn.functional.binary_cross_entropy_with_logits),
        (
            "multi_label_classification",
            3,
            SEVERAL,
            lambda x, y: nn.functional.binary_cross_entropy_with_logits(x, y.float()),
        ),
        (None, 3, SEVERAL.float(), nn.functional.binary_cross_entropy_with_logits),
        ("regression", 3, SEVERAL * 0.7, nn.functional.mse_loss),
        ("regression", 1, VALUES, lambda logits, labels: nn.functional.mse_loss(logits[:, 0], labels)),
        ("regression", 1, VALUES[:, None], nn.functional.mse_loss),
        (None, 1, VALUES.long(), lambda logits, labels: nn.functional.mse_loss(logits[:, 0], labels.float())),
    ],
)
def test_loss_of_each_problem_type(classify, problem_type, num_labels, labels, loss):
    model, x = classify(problem_type=problem_type, num_labels=num_labels)
    output = model(x, labels=labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))
    output.loss.backward()
    assert model.classifier.weight.grad.any()


@pytest.mark.parametrize(
    ("fields", "labels", "message"),
    [
        ({"num_labels": 3}, SEVERAL, r"shape \(4, 3\), expected \(4,\) for problem_type=None"),
        ({"num_labels": 3}, CLASSES[:3], r"shape \(3,\), expected \(4,\)"),
        ({"num_labels": 3}, VALUES, r"shape \(4,\), expected \(4, 3\) for problem_type=None.*float32; set config"),
        ({"num_labels": 3, "problem_type": "regression"}, VALUES, r"expected \(4, 3\)"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, CLASSES, r"expected \(4, 3\)"),
        ({"num_labels": 1}, SEVERAL, r"expected \(4, 1\)"),
        ({"num_labels": 3}, torch.tensor(1), r"shape \(\), expected \(4,\)"),
    ],
)
def test_labels_of_another_kind_are_refused(classify, fields, labels, message):
    """They would be spread over all images, and the loss would mean nothing."""
    model, x = classify(**fields)
    with pytest.raises(ValueError, match=message):
        model(x, labels=labels)


def test_pipeline_answers_as_the_problem_type_asks(classify, tmp_path):
    model, x = classify(problem_type="multi_label_classification", num_labels=3)
    processor = HybridImageProcessor.from_config(model.config)
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    answer = pipeline("image-classification", model=str(tmp_path))(processor.pixels_to_images(x[:1])[0])
    scores = {entry["label"]: entry["score"] for entry in answer}
    expected = model(x[:1]).logits.sigmoid().squeeze(0).tolist()
    assert [scores[f"LABEL_{i}"] for i in range(3)] == pytest.approx(expected)

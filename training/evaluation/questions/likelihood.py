"""How many bits the model needs for an image of each split, exactly."""

from modeling_hybrid.likelihood import bits_per_dim

from ..subject import Findings, Subject


def evaluate(subject: Subject) -> Findings:
    """Bits per dimension of the clean images of each split, and by how much those of training and test differ."""
    if not subject.has_likelihood:
        return Findings()
    bits = {name: bits_per_dim(embedding.nll, subject.model.config) for name, embedding in subject.embeddings.items()}
    means = {name: float(values.mean()) for name, values in bits.items()}
    return Findings(
        {
            "bits_per_dim": means["test"],
            "bits_per_dim_by_split": means,
            "bits_per_dim_gap": means["test"] - means["train"],
        },
        {"bits_per_dim": bits["test"]},
    )

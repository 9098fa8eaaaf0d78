"""Training with labels, from a pre-trained checkpoint."""

"""Training with labels, from a pre-trained checkpoint: `classification.py`, by one of the methods of `methods.py`."""

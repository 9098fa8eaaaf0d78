"""What is shown of results: which values, how they are written, cards and pictures."""

"""Recipes that run from a clone: pre-training, evaluation, fine-tuning. Not part of the wheel."""

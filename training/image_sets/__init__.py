"""Builders of image sets, which fetch what they need; run each with `python -m training.image_sets.NAME`."""

"""Rendered clips and their ground truth. Nothing here imports torch."""

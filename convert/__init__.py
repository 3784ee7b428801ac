"""Weights from other programs' files into this project's parameter trees, and back."""

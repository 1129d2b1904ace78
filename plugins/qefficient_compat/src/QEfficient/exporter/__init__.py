"""Exporting a model by its name."""

"""Compiling a graph by its path."""

"""Models of Transformers."""

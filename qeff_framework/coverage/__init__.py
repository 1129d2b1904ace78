"""Architecture coverage: tiny random models of every model type, and what Transformers itself computes for them.

`tiny` builds the model, `reference` decodes it with Transformers alone. Nothing here is imported by the export path.
"""

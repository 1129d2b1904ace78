"""Architecture coverage: tiny random models of every model type, held against what Transformers itself computes for them.

`tiny` builds the model, `reference` decodes it with Transformers alone, `parity` takes it through a backend, `processes`
does so for many types, `lines` and `table` keep the results. Nothing here is imported by the export path.
"""

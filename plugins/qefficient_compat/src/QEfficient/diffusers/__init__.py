"""Refused: pipelines for images and videos."""

raise ImportError(
    "QEfficient.diffusers is not provided: this package runs language, embedding, vision-language and speech models; run "
    "pipelines for images and videos with the package diffusers"
)

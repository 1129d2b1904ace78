"""The stand-in `qaic-compile`: argument checks, graph checks, side files, and the writer of the QPC."""

"""The stand-in `qnn-context-binary-generator`."""

"""The stand-in `qaic-util` and `qaic-version-util`."""

"""The stand-in `qairt-converter`."""

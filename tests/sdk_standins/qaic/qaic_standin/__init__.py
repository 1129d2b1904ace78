"""A stand-in for the QAIC SDK of Cloud AI 100: our own code, no vendor code, no hardware.

`install_standin` copies this package into the tree that it creates; the executables and the `qaicrt` module of that
tree import it from there. It is at least as strict as the published behaviour of the real tools, so that a plugin which
passes here does not have to change on a real machine. Passing here says nothing about speed or device numerics.
"""

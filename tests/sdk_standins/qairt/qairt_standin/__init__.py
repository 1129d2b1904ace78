"""A stand-in for the QAIRT tools that compile for Cloud AI 100: our own code, no vendor code, no hardware.

`install_standin` copies this package and the stand-in QAIC compiler, whose checks and program format it uses, into the tree
that it creates. Options, files and formats are taken as far as public sources vouch for them, and refused beyond.
"""

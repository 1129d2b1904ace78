"""What the modules of `QEfficient` are made of. Everything here is private."""

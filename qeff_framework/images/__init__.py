"""What the host does with images around a program: the tensors of a processor taken apart, positions of their tokens, rows."""

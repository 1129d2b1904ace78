"""What ``qeff generate`` runs and prints, one file for each kind of result."""

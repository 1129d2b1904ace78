"""Stand-ins for vendor SDKs, and their own tests."""

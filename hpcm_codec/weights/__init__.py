"""Weights as files: where they are found and by which names and identities, how they are checked, packed and saved."""

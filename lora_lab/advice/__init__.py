"""What to train, by what was published; and which layers, by a few backward passes."""

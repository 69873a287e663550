"""Tasks that are made here from a seed, one file each: each registers itself."""

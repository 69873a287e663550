"""What only a GPU can settle, in one table: `python -m benchmarks.gpu`."""

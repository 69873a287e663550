"""One file a format: each makes a `Table` of what stands in a file, and guesses no types."""

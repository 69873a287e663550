"""What learned tokens need: where they stand, the model's body, the frame of a call."""

"""FT, FT-TopN and BitFit: methods that train the model's own parameters."""

"""PreEmbed and PreLayer: learned tokens around the prompt."""

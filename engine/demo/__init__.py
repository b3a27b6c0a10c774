"""The default checkpoint: generated from a fixed seed in Hugging Face format."""

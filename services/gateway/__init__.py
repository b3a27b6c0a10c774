"""HTTP in, server-sent events out: keys, tokens, text, stop strings."""

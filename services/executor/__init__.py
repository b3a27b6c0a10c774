"""The shell around an engine: one step at a time, no event loop."""

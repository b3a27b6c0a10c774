"""What is decided, by which rule. Pure: no clock, socket, await, logging, torch or global randomness."""

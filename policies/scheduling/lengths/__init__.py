"""How many tokens a sequence will produce: intervals made when it is released, and estimates that follow it."""

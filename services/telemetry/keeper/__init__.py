"""The keeper: a process beside each gateway that turns its records into spans, metrics and answers."""

"""Rate limits: what a contract allows, taken and given back. Pure; times are nanoseconds given by the caller."""

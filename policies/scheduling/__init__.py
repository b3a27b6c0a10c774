"""What each step computes: sequences, deadlines, KV blocks, stages, preemption and routing."""

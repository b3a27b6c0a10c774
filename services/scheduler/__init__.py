"""The shell around SchedulerCore: token payloads, executors, token frames."""

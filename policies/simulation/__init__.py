"""The same cores in virtual time: a driver, workloads, executor models and reports."""

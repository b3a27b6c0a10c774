"""The shell around AdmissionCore: backlog payloads, release to the scheduler, policy revisions."""

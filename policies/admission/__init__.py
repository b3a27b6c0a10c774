"""Who may enter, in which order: classification, the fair queue, the in-flight window and its ledger."""

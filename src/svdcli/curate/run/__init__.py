"""The stages in order over every input: lists, workers, engines, the plan and the accounts."""

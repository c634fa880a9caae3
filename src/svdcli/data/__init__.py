"""Clips: where training examples come from, how much they move, and how a batch is drawn from (seed, step)."""

"""Training and sampling on one Fabric: launch, the loop and its state, tasks, memory modes, generation."""

"""Sources into clips without a cut: opened safely, probed, decoded once, cut by the cascade, written and checked."""

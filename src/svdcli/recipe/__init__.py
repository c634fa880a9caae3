"""TOML in, typed and frozen values out. No torch in here."""

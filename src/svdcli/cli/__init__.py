"""The commands: the only Typer, Rich and stdout. One file per command; `app` gathers them."""

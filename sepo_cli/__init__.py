"""The command line: options -> configuration -> stage, and where errors are rendered. Knows typer and rich."""

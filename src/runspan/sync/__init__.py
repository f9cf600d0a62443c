"""The sync use case: fetch runs from the platform, export them, and record in a state what was acknowledged."""

"""What every SQLite file of runspan shares."""

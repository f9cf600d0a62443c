"""The run document, its parsing, ids and timestamps: pure, no I/O and no clock."""

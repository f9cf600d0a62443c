"""The index of the embedded store: derived from its runs, and what lists and statistics of many runs are read from."""

"""Where traces are kept and read: the embedded store, and the stores of others behind the same contract."""

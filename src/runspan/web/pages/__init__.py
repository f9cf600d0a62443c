"""The HTML pages: the list of runs, a run, a comparison of two runs, and the login."""

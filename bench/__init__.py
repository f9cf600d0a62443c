"""The benchmark: ratios between ways to do the same work, measured in one run in which they take turns."""

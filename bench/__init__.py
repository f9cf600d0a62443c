"""The benchmark: ratios between ways to do the same work, measured in one run with the contestants taking turns."""

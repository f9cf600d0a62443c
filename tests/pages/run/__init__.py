"""The run page in Chromium."""

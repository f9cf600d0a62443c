"""Alerts as code: ``alerts.yaml`` is the source, ``python -m alerts`` writes ``deploy/rules/runspan.yaml``."""

"""The operations stack on the real programs: the Collector's configuration, the alerts, and what survives faults."""

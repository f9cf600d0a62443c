"""Run documents, spans, ids and timestamps, with no I/O and no clock."""

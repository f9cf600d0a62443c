"""Run documents to spans and back over one field table: pure, no I/O and no clock."""

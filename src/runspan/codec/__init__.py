"""Conversion between run documents and spans by one field table, with no I/O and no clock."""

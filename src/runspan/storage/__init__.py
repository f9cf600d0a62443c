"""Databases: SQLite files, PostgreSQL, and the tables that several of them have."""

"""Opening SQLite files, and the tables that several of them have."""

"""What the embedded store is searched and summed up by: a second file, which is made from the store."""

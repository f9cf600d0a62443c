"""Follow a folder of run documents and export what changes."""

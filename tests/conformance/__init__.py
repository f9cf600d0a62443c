"""One suite that every trace backend passes."""

"""What all HTTP clients share: checked hosts, a deadline for an attempt, waits asked for, words without secrets."""

"""The archive use case: write finished runs to files that are verified before anything may be deleted."""

"""One study, from its config to its last figure."""

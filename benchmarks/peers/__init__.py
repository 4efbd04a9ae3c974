"""What a user would write instead, each a script of its own with stock libraries alone, given the same task."""

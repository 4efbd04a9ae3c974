"""The blog post's model, reproduced."""

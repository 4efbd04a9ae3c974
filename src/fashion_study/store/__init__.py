"""The store: both databases, their locks and what may become of them."""

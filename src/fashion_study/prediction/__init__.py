"""The prediction: pictures of any kind, turned into what a model was trained on, and named by it."""

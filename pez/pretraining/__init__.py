"""Training a small V-JEPA 2 from videos made on the fly."""

"""What probes read: clips with features, labels and groups."""

"""The frozen video encoder: loading, preprocessing, capture, pooling, extraction."""

"""How probes are trained: batched AdamW, ridge, attentive probes."""

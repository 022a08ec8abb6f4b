"""From result tables to figures."""

"""Violation of expectation: how far a film's future lies from what V-JEPA 2's own predictor expects."""

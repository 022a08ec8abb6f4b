"""How far onsets can be trusted, on planted curves; see docs/onset.md."""

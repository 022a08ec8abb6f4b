"""Questions about the method itself, answered by simulation; each writes the tables of a page in docs/."""

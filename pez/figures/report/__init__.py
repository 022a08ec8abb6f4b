"""report.html: one self-contained page over everything in a results folder."""

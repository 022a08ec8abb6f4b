"""Speed of every step beside what a user would otherwise do; see docs/benchmarks.md."""

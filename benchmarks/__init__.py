"""Speed of every step beside what a user would otherwise do; see BENCHMARKS.md."""

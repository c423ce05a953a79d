"""Answers of a split, scored by the benchmark's own protocol, with controls and a report."""

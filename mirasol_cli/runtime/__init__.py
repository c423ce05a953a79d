"""Processes, devices, signals, locks and the console."""

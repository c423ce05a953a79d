"""What training writes and everything else loads: checkpoint folders, run folders, imported weights."""

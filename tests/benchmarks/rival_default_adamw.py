"""The adapter of `rival.py` with torch's default AdamW, so that the share of the optimizer in the difference can be seen."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch

import rival


class Case(rival.Case):
    def _optimizer(self):  # type: ignore[no-untyped-def]
        return torch.optim.AdamW(self.model.parameters(), lr=self.shape["learning_rate"])

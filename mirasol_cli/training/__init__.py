"""One loop for pretraining and finetuning; `setup` builds a run, `loop` steps it."""

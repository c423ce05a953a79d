"""From shards to batches: the order of the data, samples and texts as tensors, reading ahead."""

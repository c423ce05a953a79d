"""`mirasol prepare`: videos and annotations become shards."""

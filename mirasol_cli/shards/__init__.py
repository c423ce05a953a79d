"""Prepared clips on disk: safetensors shards, their index and checksums. Knows no model."""

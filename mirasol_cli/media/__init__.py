"""From a video file to the arrays of a shard. Decoders run only here, and only inside supervised child processes (`workers`)."""

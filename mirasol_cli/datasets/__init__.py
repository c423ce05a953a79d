"""One small reader per benchmark: annotation files become clips and the texts about them (`example`)."""

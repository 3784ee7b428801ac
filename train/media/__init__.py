"""People's own clips and pictures with captions, from files to batches."""

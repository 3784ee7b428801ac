"""A procedural world of openly licensed drawings: atlas, renderer, captions, judge."""

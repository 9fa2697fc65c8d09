"""What a run shows: tables, curves, pictures of attention."""

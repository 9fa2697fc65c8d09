"""From planned clips to pixels."""

"""Data sets, one tiny script each: where from, licence, how to read."""

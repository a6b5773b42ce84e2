"""A store of checkpoints for live states: snapshots taken while training goes on, one save in flight."""

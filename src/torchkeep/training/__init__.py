"""Keeping a run: what its state is, the store of its checkpoints, the loop that saves and resumes by itself."""

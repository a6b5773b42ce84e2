"""The loop that saves and resumes by itself: batches as functions of a key, signals, progress."""

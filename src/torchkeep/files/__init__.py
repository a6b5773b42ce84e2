"""One file: save, load, and plan what goes where before anything is touched."""

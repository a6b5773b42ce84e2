"""Where files are kept: a small seam to the operating system, whole or not at all, at the disk's speed."""

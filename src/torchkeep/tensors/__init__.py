"""Where torch begins: dtypes, storage identity, keyed generators, and tensors read from files."""

"""What a run's state is: taken apart into tensors and values, and put back in place."""

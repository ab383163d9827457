"""What lives outside device memory, and when it moves."""

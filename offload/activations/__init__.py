"""Activations that leave device memory between forward and backward."""

"""Addresses for tensors whose lifetimes are known beforehand."""

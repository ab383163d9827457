"""Byte buffers kept in preallocated files."""

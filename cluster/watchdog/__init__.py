"""Tells from telemetry and time what is wrong with a run, and which rank, host or link it is."""

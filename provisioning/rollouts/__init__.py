"""Rollouts: devices provisioned in waves, at a pace, under conditions, within a schedule."""

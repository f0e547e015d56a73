"""Rollouts: plans, paces, schedules and decisions."""

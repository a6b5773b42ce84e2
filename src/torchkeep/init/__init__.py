"""Initialising."""

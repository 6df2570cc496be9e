"""Adapters for public data sets as they are really distributed, and bag files."""

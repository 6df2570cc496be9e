"""Recipes: one TOML file per training that can be repeated."""

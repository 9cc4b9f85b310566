"""Whole applications built on the toolkit."""

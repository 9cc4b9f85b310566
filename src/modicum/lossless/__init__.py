"""Codes that make weights smaller and give back every bit."""

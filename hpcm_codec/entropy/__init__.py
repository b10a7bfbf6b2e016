"""Distributions of symbols, their integer tables, and the rANS coder: symbols and tables, no networks."""

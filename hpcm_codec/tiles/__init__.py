"""Tiles of a picture: their grid, halos and windows, which of them are held at a time, and what memory that takes."""

"""Preparation of data sets: folder layouts, validation, repair and conversion."""

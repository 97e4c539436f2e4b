"""Preparation of data sets: layouts, validation, repair and conversion."""

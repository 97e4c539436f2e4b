"""COCO evaluation, results files, error analysis and drawn comparisons."""

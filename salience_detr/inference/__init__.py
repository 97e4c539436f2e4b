"""Detection on files: reading images and videos, tiling, tracking, and writing the results."""

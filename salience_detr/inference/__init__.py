"""From files to files: reading pictures and videos, detecting in tiles, tracking, and writing what was found."""

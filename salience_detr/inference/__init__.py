"""From files to files: reading images and videos, detecting in tiles, tracking, and writing what was found."""

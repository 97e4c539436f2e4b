"""Files, errors, drawing and signals."""

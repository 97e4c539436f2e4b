"""Training and evaluation: what detectron2's engine lacks."""

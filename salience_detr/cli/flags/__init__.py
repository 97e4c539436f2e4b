"""Flags of the programs, apart from the programs, so that --help needs no heavy imports."""

"""One structured matrix type a file."""

"""Images in, labels out: protocols, windows, bands of rows."""

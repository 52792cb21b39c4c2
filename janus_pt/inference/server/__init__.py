"""A small HTTP server: requests gathered into batches, metrics, and a page that shows both ways of decoding."""

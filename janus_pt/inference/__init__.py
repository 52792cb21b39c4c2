"""From an export folder to text: loading, batching, files, servers."""

"""What a stopped run goes on from: writing, verifying, reading on another layout."""

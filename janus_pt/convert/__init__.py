"""Models of other projects, read into ours."""

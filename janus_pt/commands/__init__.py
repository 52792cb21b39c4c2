"""The command line `janus-pt`: a module a command, imported when it is named."""

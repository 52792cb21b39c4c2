"""Settings of all tests."""

from hypothesis import settings

# How long an example takes says how busy the machine is; speed is the benchmark's business.
settings.register_profile("janus_pt", deadline=None)
settings.load_profile("janus_pt")

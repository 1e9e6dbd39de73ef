"""Settings of this room's tests."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # a busy machine must not fail a law
settings.load_profile("no deadline")

"""How the property-based tests draw: fresh examples at a desk, the same ones in every CI run."""

from __future__ import annotations

import os

from hypothesis import Phase, settings

# CI judges a commit, so it must not depend on the draw; a desk run is where new counterexamples are found.
settings.register_profile("ci", derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate))
settings.register_profile("desk", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

"""Other people's methods, to compare with. ``yopo`` prunes visual computation inside the language decoder."""

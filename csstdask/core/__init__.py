"""Foundation without astronomy: errors, atomic files, settings, warnings and optional packages."""

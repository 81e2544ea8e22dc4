"""Foundation without astronomy: errors, atomic files, settings, warnings, optional packages."""
